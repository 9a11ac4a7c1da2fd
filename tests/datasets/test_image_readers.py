import pickle
import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from sample_images import encoded, picture

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


# Bad input: one clear line that names the value and the accepted ones.


def message_of(name, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load_data(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_names_list_the_known_ones(parquet_root):
    message = message_of("animal", root=parquet_root)
    assert "'animal'" in message and "near: animals" in message and "digits, characters, animals" in message
    assert "digits, characters" in message_of("mnist")
    assert "'../animals'" in message_of("../animals", root=parquet_root)


def test_a_missing_root_is_named(tmp_path):
    assert "nowhere" in message_of("mnist", root=tmp_path / "nowhere")
    assert "nowhere" in message_of("pets", root=tmp_path / "nowhere")
    assert available() == ("digits", "characters")


def test_missing_splits_and_shards_are_named(parquet_root):
    folder = parquet_root / "animals"
    shutil.move(folder / "train-00001-of-00002.parquet", parquet_root / "elsewhere.parquet")
    assert "1 of the 2 shards of 'train'" in message_of("animals", root=parquet_root)
    shutil.move(parquet_root / "elsewhere.parquet", folder / "train-00001-of-00002.parquet")
    (folder / "test-00000-of-00001.parquet").unlink()
    assert "no test split (found: train)" in message_of("animals", root=parquet_root)
    (parquet_root / "empty").mkdir()
    assert "no train and no test split (found: none)" in message_of("empty", root=parquet_root)


def test_an_empty_split_is_named(parquet_root, write_parquet):
    write_parquet(
        parquet_root / "animals" / "test-00000-of-00001.parquet", [], ["cat", "guinea_pig", "dog", "sea_horse"]
    )
    assert "split 'test' is empty" in message_of("animals", root=parquet_root)


def test_a_class_without_test_images_is_named(parquet_root, write_parquet):
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    write_parquet(path, [0, 2, 3], ["cat", "guinea_pig", "dog", "sea_horse"])
    assert "'test' has no image of 1 of the 4 classes: 'guinea pig'" in message_of("animals", root=parquet_root)


def test_labels_outside_the_classes_are_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "set").mkdir()
    for split, labels in (("train", [0, 1, 0]), ("test", [0, 1, -1])):
        rows = {"image": [encoded(row) for row in range(3)], "label": labels}
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    message = message_of("set", root=tmp_path)
    assert "split 'test'" in message and "label -1 of row 2" in message and "2 classes" in message


def test_test_classes_that_training_lacks_are_named(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "toys" / "train", {"ball": 2})
    write_class_folders(tmp_path / "toys" / "test", {"ball": 1, "kite": 1})
    assert "classes kite are not in the training split" in message_of("toys", root=tmp_path)


def test_files_with_other_class_names_are_rejected(parquet_root, write_parquet):
    path = write_parquet(parquet_root / "animals" / "test-00000-of-00001.parquet", [0, 1], ["cat", "dog"])
    assert str(path) in message_of("animals", root=parquet_root)


def test_unreadable_parquet_and_missing_columns_are_named(parquet_root):
    import pyarrow
    import pyarrow.parquet

    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    path.write_bytes(b"PAR1 but no more")
    assert str(path) in message_of("animals", root=parquet_root)
    pyarrow.parquet.write_table(pyarrow.table({"picture": [b""], "label": [0]}), path)
    message = message_of("animals", root=parquet_root)
    assert "picture, label" in message and "image, img" in message


def test_an_unreadable_row_is_named(parquet_root, write_parquet):
    names = ["cat", "guinea_pig", "dog", "sea_horse"]
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    write_parquet(path, [row % 4 for row in range(12)], names, broken=7)
    message = message_of("animals", root=parquet_root)
    assert "'animals': 1 of 52 images cannot be read" in message and f"test: {path}, row 7: cannot identify" in message


def test_a_row_of_the_second_shard_is_named_by_its_own_number(parquet_root, write_parquet):
    names = ["cat", "guinea_pig", "dog", "sea_horse"]
    path = parquet_root / "animals" / "train-00001-of-00002.parquet"
    write_parquet(path, [row % 4 for row in range(20)], names, first=20, broken=4)
    assert f"{path}, row 4: " in message_of("animals", root=parquet_root)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", encoded(1)[:60], encoded(1)[:-30]], ids=["empty", "head", "half", "tail"]
)
def test_a_broken_file_is_named(tmp_path, write_class_folders, content):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    path = tmp_path / "toys" / "test" / "ball" / "001.png"
    path.write_bytes(content)
    assert f"1 of 4 images cannot be read, the first test: {path}: " in message_of("toys", root=tmp_path)


def test_shots_and_fraction_exclude_each_other():
    assert "shots=2 and fraction=0.5" in message_of("digits", shots=2, fraction=0.5)
    assert "largest class" in message_of("digits", shots=1000)


def rewritten(parquet_root, change):
    """The test shard of `animals` after `change` on its table."""
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)
    return path


def test_a_struct_without_bytes_is_named(parquet_root):
    def without_bytes(table):
        paths = pyarrow.StructArray.from_arrays([pyarrow.array(["a.png"] * len(table))], ["path"])
        return table.set_column(0, "image", paths)

    path = rewritten(parquet_root, without_bytes)
    with pytest.raises(ValueError, match=rf"{path.name}: column 'image' holds struct<path.*accepted is a struct"):
        load_data("animals", root=parquet_root)


@pytest.mark.parametrize("metadata", [b"not JSON", b"[]", b'{"info": {"features": null}}'])
def test_foreign_metadata_is_read_as_none(parquet_root, metadata):
    for path in (parquet_root / "animals").iterdir():
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.replace_schema_metadata({b"huggingface": metadata}), path)
    data = load_data("animals", root=parquet_root)
    assert data.class_names == ("0", "1", "2", "3") and torch.equal(data.test.labels, torch.arange(12) % 4)


def write_set(root, **columns):
    """A Parquet set with the same rows in both splits."""
    (root / "set").mkdir()
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table(columns), root / "set" / f"{split}.parquet")


IMAGES = [encoded(row) for row in range(4)]


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


@pytest.mark.parametrize(
    ("column", "values", "shown"), [("label", [0.5, 1, 2, 3], "double"), ("image", ["a", "b", "c", "d"], "string")]
)
def test_columns_of_other_types_are_named(tmp_path, column, values, shown):
    write_set(tmp_path, **{"image": IMAGES, "label": [0, 1, 0, 1], column: values})
    message = message_of("set", root=tmp_path)
    assert "train.parquet" in message and f"column {column!r} holds {shown}; accepted are" in message


def test_missing_labels_and_images_are_named(tmp_path):
    write_set(tmp_path, image=[*IMAGES[:3], None], label=[0, 1, 0, 1])
    assert "train.parquet, row 3: the row holds no image bytes" in message_of("set", root=tmp_path)
    shutil.rmtree(tmp_path / "set")
    write_set(tmp_path, image=IMAGES, label=[0, 1, None, 1])
    assert "label None of row 2 is outside the 2 classes" in message_of("set", root=tmp_path)


def test_files_with_other_columns_are_rejected(parquet_root):
    path = rewritten(parquet_root, lambda table: table.rename_columns(["img", "label"]))
    assert f"{path} has columns img and label (integers)" in message_of("animals", root=parquet_root)


def test_a_file_with_a_broken_body_is_one_line(parquet_root):
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    message = message_of("animals", root=parquet_root)
    assert str(path.parent) in message and "cannot be copied" in message


def test_images_anywhere_else_than_in_class_folders_are_named(tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    nested = tmp_path / "toys" / "train" / "ball" / "red"
    write_class_folders(nested.parent, {"red": 1})
    assert f"{nested} is a folder in a class folder" in message_of("toys", root=tmp_path)
    shutil.rmtree(nested)
    (tmp_path / "toys" / "test" / "stray.PNG").write_bytes(encoded(0))
    assert "stray.PNG is in no class folder" in message_of("toys", root=tmp_path)


def test_an_empty_split_of_class_folders_is_named(tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    (tmp_path / "toys" / "val" / "ball").mkdir(parents=True)
    assert "split 'validation' is empty" in message_of("toys", root=tmp_path)


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


def test_a_cache_that_cannot_be_written_is_named(parquet_root, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in the folder's place")
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    assert str(tmp_path / "cache") in message_of("animals", root=parquet_root)


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
