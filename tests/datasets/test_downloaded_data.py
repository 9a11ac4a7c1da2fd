"""Data sets of the hub and of torchvision, from folders laid out like theirs; no network is used."""

import dataclasses
import socket

import numpy as np
import pytest
from sample_images import picture
from torchvision_layouts import LAYOUTS, write_folders

from randlora_core.datasets import CATALOG, HubEntry, MissingDataError, fetch, fingerprint_data, load_data
from randlora_core.datasets.find import find_data
from randlora_core.datasets.hub import HubData
from randlora_core.datasets.prompts import check_class_order, readable_names
from randlora_core.datasets.stored import identify
from randlora_core.datasets.torchvision_data import TorchvisionData, _folder_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own; whoever tries the network is told so."""

    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "cache"


def row(key, **changes):
    return dataclasses.replace(CATALOG[key], **changes)


# The hub.

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def repository(tmp_path, write_parquet):
    """A folder as `datasets` sees a repository: Parquet files in data/, with one split that nobody asks for."""
    folder = tmp_path / "someone" / "pictures"
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", [0, 1, 2] * 2, NAMES)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", [0, 1, 2] * 3, NAMES, first=6)
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", [2, 1, 0], NAMES, first=30)
    write_parquet(folder / "data" / "extra-00000-of-00001.parquet", [0], NAMES, first=40)
    return folder


@pytest.fixture
def on_hub(repository, monkeypatch):
    """CUB200 with that repository as its hub entry, whose validation split is the test split."""
    hub = HubEntry(str(repository), {"train": "train", "test": "validation"})
    sizes = {"num_classes": 3, "num_train": 12, "num_validation": 3, "num_test": 3}
    monkeypatch.setitem(CATALOG, "cub200", row("cub200", hub=hub, **sizes))


def test_a_hub_set_is_downloaded_once_when_asked_for(on_hub, repository):
    with pytest.raises(MissingDataError, match=r"'cub200' are not here .*fetch cub200"):
        load_data("cub200")
    data = load_data("cub200", download=True)
    assert data.class_names == tuple(NAMES) and data.sizes == {"train": 12, "validation": 3, "test": 3}
    assert not data.is_subset and data.paper_name == "CUB200"
    assert data.test.labels.tolist() == [2, 1, 0]
    for index in range(3):
        np.testing.assert_array_equal(np.asarray(data.test.image(index)), np.asarray(picture(30 + index)))
    for split in (data.train, data.validation):
        for index, position in enumerate(split.indices):
            np.testing.assert_array_equal(np.asarray(split.image(index)), np.asarray(picture(int(position))))
    for path in (repository / "data").iterdir():
        path.unlink()  # what was downloaded is read from the cache alone
    again = load_data("cub200")
    assert again.fingerprint == data.fingerprint == fingerprint_data("cub200")
    assert np.array_equal(again.train.indices, data.train.indices)


def test_a_folder_comes_before_the_hub(on_hub, tmp_path, write_class_folders):
    fetch(CATALOG["cub200"])
    for split in ("train", "test"):
        write_class_folders(tmp_path / "root" / "cub" / split, {"owl": 2, "wren": 2})
    assert load_data("cub200", root=tmp_path / "root", download=True).class_names == ("owl", "wren")
    assert load_data("cub200").class_names == tuple(NAMES)


def test_hub_splits_can_be_joined_and_columns_have_other_names(repository, monkeypatch):
    import pyarrow.parquet

    for path in (repository / "data").iterdir():
        table = pyarrow.parquet.read_table(path)
        if path.name.startswith("extra"):
            path.unlink()
        else:
            columns = {"image": "img", "label": "fine_label"}
            pyarrow.parquet.write_table(table.rename_columns(columns), path)
    hub = HubEntry(str(repository), {"train": "train+validation"}, image="img", label="fine_label")
    sizes = {"num_classes": 3, "num_train": 12, "num_validation": 2, "num_test": 4, "torchvision": None}
    monkeypatch.setitem(CATALOG, "caltech256", row("caltech256", hub=hub, **sizes))
    data = load_data("caltech256", download=True)
    assert data.sizes == {"train": 12, "validation": 2, "test": 4}
    positions = np.concatenate([split.indices for split in (data.train, data.validation, data.test)])
    assert sorted(positions) == list(range(18))
    split = next(split for split in (data.train, data.validation, data.test) if 17 in split.indices)
    index = split.indices.tolist().index(17)
    assert split.labels[index] == 0
    np.testing.assert_array_equal(np.asarray(split.image(index)), np.asarray(picture(32)))


def test_broken_images_of_the_hub_are_named(repository, on_hub, write_parquet):
    write_parquet(repository / "data" / "validation-00000-of-00001.parquet", [2, 1, 0], NAMES, first=30, broken=1)
    with pytest.raises(ValueError, match=r"1 of 18 images cannot be read, the first test: .*\.arrow, row 1: "):
        load_data("cub200", download=True)


def test_a_cache_that_lost_its_files_is_no_data(on_hub, cache):
    fetch(CATALOG["cub200"])
    assert isinstance(find_data("cub200", None), HubData)
    for path in (cache / "datasets").rglob("*.arrow"):
        path.unlink()
    with pytest.raises(MissingDataError):
        load_data("cub200")


def test_a_repository_with_other_columns_is_not_taken(repository, monkeypatch):
    hub = HubEntry(str(repository), {"train": "train"}, label="species")
    monkeypatch.setitem(CATALOG, "cub200", row("cub200", hub=hub))
    with pytest.raises(MissingDataError, match=r"split 'train' has no column species.*; torchvision has none"):
        load_data("cub200", download=True)
    with pytest.raises(MissingDataError, match="are not here"):
        load_data("cub200")


@pytest.mark.parametrize("key", ["ucf101", "resisc45"])
def test_what_cannot_be_had_says_what_was_tried(key, tmp_path, monkeypatch):
    if CATALOG[key].hub:
        elsewhere = HubEntry(str(tmp_path / "nowhere" / "pictures"), {"train": "train"})
        monkeypatch.setitem(CATALOG, key, row(key, hub=elsewhere))
    with pytest.raises(MissingDataError, match=f"{key}.* could not be downloaded") as caught:
        load_data(key, download=True)
    message = str(caught.value)
    assert "torchvision has none" in message and "docs/datasets.md" in message and "\n" not in message
    assert ("the hub has none" if key == "ucf101" else "nowhere/pictures") in message


# torchvision.


@pytest.fixture
def any_checksum(monkeypatch):
    """Accepts files made here for the ones whose checksums torchvision knows."""
    from torchvision.datasets import cifar, flowers102, stl10, svhn

    for module in (cifar, flowers102, stl10, svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: True)


def test_every_class_of_torchvision_that_is_used_is_tried():
    used = {entry.key for entry in CATALOG.values() if entry.torchvision}
    assert used - {layout.__name__ for layout in LAYOUTS} == {"cifar100"}  # a class made from that of CIFAR10


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_files_of_torchvision_are_read_as_they_are(layout, tmp_path, any_checksum):
    entry = CATALOG[layout.__name__]
    expected = layout(tmp_path)
    data = TorchvisionData(entry, tmp_path)
    assert all(path.suffix not in (".gz", ".zip") for paths in data.files.values() for path in paths)
    identity = identify(data)
    check_class_order(identity.classes, entry.prompts)
    names = readable_names(identity.classes, entry.prompts)
    sources = data.open(identity)
    assert sources.keys() == expected.keys()
    for split, rows in expected.items():
        source = sources[split]
        assert [names[label] for label in source.labels] == [name for name, _ in rows], split
        assert entry.torchvision.name.replace("VOCDetection", "VocObjects") in source.where(0)
        for index, (_, image) in enumerate(rows):
            expected_pixels = np.asarray(picture(image) if isinstance(image, int) else image)
            found = np.asarray(source.image(index))
            assert found.ndim == 3
            np.testing.assert_array_equal(found if expected_pixels.ndim == 3 else found[..., 0], expected_pixels)


def test_torchvision_comes_after_the_hub_and_is_kept(monkeypatch, tmp_path):
    sizes = {"num_classes": 3, "num_train": 9, "num_validation": 3, "num_test": 3}
    elsewhere = HubEntry(str(tmp_path / "nowhere"), {"train": "train"})
    monkeypatch.setitem(CATALOG, "eurosat", row("eurosat", hub=elsewhere, **sizes))
    folder = _folder_of(CATALOG["eurosat"])
    for number in range(5):  # lies there already, so torchvision does not download it
        write_folders(folder / "eurosat" / "2750", ["AnnualCrop", "Forest", "River"], 3 * number, f"{number}-{{}}.jpg")
    with pytest.raises(MissingDataError):  # a download that has not been completed does not count
        load_data("eurosat")
    data = load_data("eurosat", download=True)
    assert data.sizes == {"train": 9, "validation": 3, "test": 3} and not data.is_subset
    assert data.test.labels.tolist() == [0, 1, 2] and data.class_names[1] == "Forest"
    again = load_data("eurosat")
    assert again.fingerprint == data.fingerprint == fingerprint_data("eurosat")
    (folder / "eurosat" / "2750" / "Forest" / "1-1.jpg").rename(folder / "eurosat" / "2750" / "River" / "1-1.jpg")
    assert fingerprint_data("eurosat") != data.fingerprint


def test_a_folder_that_torchvision_cannot_use_is_one_line(tmp_path):
    (tmp_path / "dtd" / "dtd").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"torchvision's DTD cannot use .*downloaded anew") as caught:
        TorchvisionData(CATALOG["dtd"], tmp_path).classes()
    assert "\n" not in str(caught.value)
