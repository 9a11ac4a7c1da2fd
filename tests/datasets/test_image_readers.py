import pickle
import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from sample_images import IMAGES, encoded, picture, write_set
from test_image_reader_errors import message_of

from randlora_core.datasets import arrow, available, load_data


def test_parquet_images_labels_and_names(parquet_root):
    data = load_data("animals", root=parquet_root)
    assert data.class_names == ("cat", "guinea pig", "dog", "sea horse")
    assert data.sizes == {"train": 32, "validation": 8, "test": 12}
    assert data.train.labels.dtype == torch.int64
    assert torch.equal(data.test.labels, torch.arange(12) % 4)
    for index in range(12):
        np.testing.assert_array_equal(np.asarray(data.test.image(index)), np.asarray(picture(40 + index)))
    both = [*data.train.indices, *data.validation.indices]
    assert sorted(both) == list(range(40))
    for split in (data.train, data.validation):
        for index, position in enumerate(split.indices):
            np.testing.assert_array_equal(np.asarray(split.image(index)), np.asarray(picture(int(position))))
            assert split.labels[index] == position % 20 % 4


def test_parquet_validation_files_are_used(parquet_root, write_parquet):
    names = ["cat", "guinea_pig", "dog", "sea_horse"]
    write_parquet(parquet_root / "animals" / "validation-00000-of-00001.parquet", [3, 2, 1], names, first=90)
    data = load_data("animals", root=parquet_root)
    assert data.sizes == {"train": 40, "validation": 3, "test": 12}
    np.testing.assert_array_equal(np.asarray(data.validation.image(2)), np.asarray(picture(92)))


def test_parquet_in_a_data_folder_with_other_column_names_and_text_labels(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "fruit" / "data").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 10)):
        rows = {"img": [encoded(first + row) for row in range(6)], "label": ["pear", "fig"] * 3}
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "fruit" / "data" / f"{split}.parquet")
    data = load_data("fruit", root=tmp_path)
    assert data.class_names == ("fig", "pear")
    assert data.test.labels.tolist() == [1, 0] * 3
    np.testing.assert_array_equal(np.asarray(data.test.image(5)), np.asarray(picture(15)))


def test_class_folders(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "toys" / "train", {"red_ball": 5, "kite": 6})
    write_class_folders(tmp_path / "toys" / "val", {"red_ball": 1}, first=50)
    write_class_folders(tmp_path / "toys" / "test", {"kite": 2, "red_ball": 3}, first=20)
    (tmp_path / "toys" / "train" / "kite" / "notes.txt").write_text("not an image")
    data = load_data("toys", root=tmp_path)
    assert data.class_names == ("kite", "red ball")
    assert data.sizes == {"train": 11, "validation": 1, "test": 5}
    assert data.test.labels.tolist() == [0, 0, 1, 1, 1]
    np.testing.assert_array_equal(np.asarray(data.test.image(4)), np.asarray(picture(24)))


def test_numbered_class_folders_are_sorted_as_numbers(tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "signs" / split, {"10": 2, "9": 2, "0": 2})
    assert load_data("signs", root=tmp_path).class_names == ("0", "9", "10")


def test_digits_are_stratified_and_fixed():
    data, again = load_data("digits", seed=0), load_data("digits", seed=5, shots=2)
    assert data.class_names[3] == "three" and data.train.image(0).size == (32, 32)
    assert data.sizes == {"train": 868, "validation": 210, "test": 719}
    assert torch.bincount(data.test.labels).min() >= 69
    assert np.array_equal(data.test.indices, again.test.indices)
    assert np.array_equal(data.validation.indices, again.validation.indices)
    assert data.fingerprint == again.fingerprint and not data.allow_flip
    pictures = [np.asarray(split.image(i)).tobytes() for split in (data.train, data.test) for i in range(len(split))]
    assert len(set(pictures)) == len(pictures)


def test_shots_choose_from_the_training_images_only(parquet_root):
    whole = load_data("animals", root=parquet_root)
    data = load_data("animals", root=parquet_root, shots=2, seed=1)
    assert data.sizes == {"train": 8, "validation": 8, "test": 12}
    assert set(data.train.indices) < set(whole.train.indices)
    assert np.array_equal(data.validation.indices, whole.validation.indices)
    assert load_data("animals", root=parquet_root, fraction=0.5).sizes["train"] == 16


def test_short_classes_are_reported_by_name(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "toys" / "train", {"ball": 20, "red_kite": 5})
    write_class_folders(tmp_path / "toys" / "test", {"ball": 1, "red_kite": 1})
    data = load_data("toys", root=tmp_path, shots=8)
    assert data.short_classes == {"red kite": 4} and data.sizes["train"] == 12


def test_a_part_of_a_published_set_is_a_subset_with_its_own_name(tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "mnist_part" / split, {"0": 2, "7": 2})
    data = load_data("mnist_part", root=tmp_path)
    assert data.name == "mnist_part" and data.is_subset and data.paper_name == "MNIST" and not data.allow_flip
    assert data.class_names == ("0", "7") and data.templates == ('a photo of the number: "{}".',)


@pytest.mark.parametrize("metadata", [b"not JSON", b"[]", b'{"info": {"features": null}}'])
def test_foreign_metadata_is_read_as_none(parquet_root, metadata):
    for path in (parquet_root / "animals").iterdir():
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
    data = load_data("animals", root=parquet_root)
    assert data.class_names == ("0", "1", "2", "3") and torch.equal(data.test.labels, torch.arange(12) % 4)


@pytest.mark.parametrize("kind", [pyarrow.uint8(), pyarrow.int32(), pyarrow.int64()])
def test_integers_of_every_width_are_labels(tmp_path, kind):
    write_set(tmp_path, image=IMAGES, label=pyarrow.array([2, 0, 1, 0], kind))
    data = load_data("set", root=tmp_path)
    assert data.test.labels.tolist() == [2, 0, 1, 0] and data.class_names == ("0", "1", "2")


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_numbers_as_text_are_sorted_as_numbers(tmp_path, kind):
    images = pyarrow.array(IMAGES, pyarrow.large_binary())
    write_set(tmp_path, image=images, label=pyarrow.array(["10", "9", "9", "1"], kind))
    data = load_data("set", root=tmp_path)
    assert data.test.labels.tolist() == [2, 1, 1, 0] and data.class_names == ("1", "9", "10")
    np.testing.assert_array_equal(np.asarray(data.test.image(3)), np.asarray(picture(3)))


# Memory, network and output.


def test_images_stay_on_disk_in_the_cache_folder(parquet_root, tmp_path, monkeypatch):
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    source = load_data("animals", root=parquet_root).train.source
    mapped = [Path(file["filename"]) for file in source._rows.cache_files]
    assert mapped and all(path.is_relative_to(tmp_path / "cache") for path in mapped)
    assert all(encoded(row) in b"".join(path.read_bytes() for path in mapped) for row in (0, 39))


def test_a_split_sent_to_another_process_shows_the_same_images(parquet_root, tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    for name in ("animals", "toys"):
        split = load_data(name, root=tmp_path).test
        sent = pickle.loads(pickle.dumps(split))
        np.testing.assert_array_equal(np.asarray(sent.image(1)), np.asarray(split.image(1)))
        assert torch.equal(sent.labels, split.labels)


def test_changed_files_are_read_again(parquet_root, write_parquet):
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    load_data("animals", root=parquet_root)
    write_parquet(path, [3, 2, 1, 0], ["cat", "guinea_pig", "dog", "sea_horse"], first=70)
    data = load_data("animals", root=parquet_root)
    assert data.test.labels.tolist() == [3, 2, 1, 0]
    np.testing.assert_array_equal(np.asarray(data.test.image(2)), np.asarray(picture(72)))


def test_no_network_is_used(parquet_root, tmp_path, write_class_folders, monkeypatch):
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    load_data("animals", root=parquet_root)
    load_data("toys", root=tmp_path)
    assert tried == []


def test_progress_is_shown_for_large_sets_only(parquet_root, tmp_path, capfd, monkeypatch):
    load_data("animals", root=parquet_root)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(arrow, "SLOW_BYTES", 0)
    shutil.move(parquet_root / "animals", parquet_root / "beasts")
    load_data("beasts", root=parquet_root)
    assert "train" in capfd.readouterr().err


def test_settings_of_the_datasets_library_are_left_as_they_were(parquet_root):
    import datasets

    def settings():
        counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
        return datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled(), counts

    before = settings()
    load_data("animals", root=parquet_root)
    assert settings() == before


def test_paths_are_not_taken_for_patterns(tmp_path, parquet_root, write_class_folders):
    root = tmp_path / "a [1-2]* #b"
    shutil.copytree(parquet_root / "animals", root / "animals")
    for split in ("train", "test"):
        write_class_folders(root / "toys" / split, {"[x]*": 2, "b?": 1})
    assert load_data("animals", root=root).sizes["test"] == 12
    data = load_data("toys", root=root)
    assert data.class_names == ("[x]*", "b?") and data.test.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(np.asarray(data.test.image(1)), np.asarray(picture(1)))


# Folders called as a built-in set.


def test_a_prefix_tells_a_folder_from_a_built_in_set(tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "digits" / split, {"one": 2, "two": 2})
        write_class_folders(tmp_path / "mnist" / split, {"0": 2, "1": 2})
    assert available(tmp_path) == ("digits", "characters", "folder:digits", "mnist")
    assert load_data("digits", root=tmp_path).sizes["test"] == 719
    own = load_data("folder:digits", root=tmp_path)
    assert own.sizes["test"] == 4 and own.class_names == ("one", "two") and own.name == "folder:digits"
    assert own.allow_flip and own.fingerprint != load_data("digits").fingerprint
    same = load_data("folder:mnist", root=tmp_path)
    assert same.paper_name == "MNIST" and same.fingerprint == load_data("mnist", root=tmp_path).fingerprint
    assert "'folder:characters'" in message_of("folder:characters", root=tmp_path)
