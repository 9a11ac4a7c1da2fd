"""Data sets of the hub and of torchvision, from folders laid out like theirs; no network is used."""

import csv
import dataclasses
import gzip
import json
import pickle
import socket
import struct

import numpy as np
import pytest
from sample_images import encoded, picture

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


# torchvision: files as its classes unpack them. Each function writes them and says what should be read, as
# split -> [(class name, number of the picture)] in order.


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))  # PNG whatever the name says; Pillow looks at the content


def write_folders(folder, classes, first=0, name="{}.jpg"):
    for number, label in enumerate(classes):
        save(folder / label / name.format(number), first + number)


def eurosat(root):
    write_folders(root / "eurosat" / "2750", ["AnnualCrop", "Forest", "River"])
    return {"train": [("annual crop land", 0), ("forest", 1), ("river", 2)]}


def country211(root):
    for first, split in enumerate(("train", "valid", "test")):
        write_folders(root / "country211" / split, ["AD", "AE"], 10 * first)
    return {
        split: [("AD", 10 * first), ("AE", 10 * first + 1)]
        for first, split in enumerate(("train", "validation", "test"))
    }


def dtd(root):
    found = {}
    for first, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        lines = [f"{label}/{label}_{split}.jpg" for label in ("zigzagged", "banded")]
        for number, line in enumerate(lines):
            save(root / "dtd" / "dtd" / "images" / line, 10 * first + number)
        path = root / "dtd" / "dtd" / "labels" / f"{name}1.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
        found[split] = [("zigzagged", 10 * first), ("banded", 10 * first + 1)]
    return found


def food101(root):
    (root / "food-101" / "meta").mkdir(parents=True)
    for first, split in enumerate(("train", "test")):
        listed = {label: [f"{label}/{split}"] for label in ("apple_pie", "ramen")}
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for number, label in enumerate(listed):
            save(root / "food-101" / "images" / label / f"{split}.jpg", 10 * first + number)
    return {
        split: [("apple pie", 10 * first), ("ramen", 10 * first + 1)] for first, split in enumerate(("train", "test"))
    }


def gtsrb(root):
    for label in range(43):
        write_folders(root / "gtsrb" / "GTSRB" / "Training", [f"{label:05d}"], label, name="{}.ppm")
    with (root / "gtsrb" / "GT-final_test.csv").open("w") as file:
        writer = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        writer.writeheader()
        for label in range(42, -1, -1):
            save(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{label}.ppm", 100 + label)
            writer.writerow({"Filename": f"{label}.ppm", "ClassId": label})
    names = CATALOG["gtsrb"].class_names
    return {
        "train": [(names[label], label) for label in range(43)],
        "test": [(names[label], 100 + label) for label in range(42, -1, -1)],
    }


def fgvc_aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("707-320\n727-200\n")
    found = {}
    for first, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        (data / f"images_variant_{name}.txt").write_text(f"{name}1 727-200\n{name}2 707-320\n")
        for number in (1, 2):
            save(data / "images" / f"{name}{number}.jpg", 10 * first + number)
        found[split] = [("727-200", 10 * first + 1), ("707-320", 10 * first + 2)]
    return found


def oxford_iiit_pet(root):
    folder = root / "oxford-iiit-pet"
    for first, name in enumerate(("trainval", "test")):
        for number, label in enumerate(("Abyssinian", "american_bulldog")):
            save(folder / "images" / f"{label}_{name}.jpg", 10 * first + number)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{name}.txt").write_text(f"american_bulldog_{name} 2 2 1\nAbyssinian_{name} 1 1 1\n")
    return {
        split: [("american bulldog", 10 * first + 1), ("Abyssinian", 10 * first)]
        for first, split in enumerate(("train", "test"))
    }


def caltech101(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    for number, label in enumerate(("BACKGROUND_Google", "Faces", "accordion")):
        save(folder / label / "image_0001.jpg", number)
    (root / "caltech101" / "Annotations").mkdir()
    return {"train": [("off-center face", 1), ("accordion", 2)]}


def caltech256(root):
    folder = root / "caltech256" / "256_ObjectCategories"
    for number, label in enumerate(("001.ak47", "002.car-side-101")):
        save(folder / label / f"{number + 1:03d}_0001.jpg", number)
    return {"train": [("ak47", 0), ("car side", 1)]}


def pascal_voc(root):
    folder = root / "VOCdevkit" / "VOC2007"
    for place in ("ImageSets/Main", "Annotations"):
        (folder / place).mkdir(parents=True)
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    found = {}
    for number, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(f"00000{number}\n")
        save(folder / "JPEGImages" / f"00000{number}.jpg", number)
        objects = (
            f"<object><name>person</name><difficult>1</difficult>{box.format(2, 3, 7, 8)}"
            f"<part><name>head</name>{box.format(2, 3, 4, 4)}</part></object>"
            f"<object><name>dog</name>{box.format(1, 1, 10, 8)}</object>"
        )
        (folder / "Annotations" / f"00000{number}.xml").write_text(f"<annotation>{objects}</annotation>")
        found[split] = [("person", picture(number).crop((1, 2, 7, 8))), ("dog", number)]
    return found


def mnist(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    found = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (10, 28, 28), dtype=np.uint8)
        labels = np.arange(10, dtype=np.uint8)[::-1]
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 10, 28, 28) + pixels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 10) + labels.tobytes())
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"not read"))
        found[split] = [(str(label), pixels[row]) for row, label in enumerate(labels)]
    return found


def cifar10(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = list(CATALOG["cifar10"].class_names)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    found = {"train": [], "test": []}
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
        content = pickle.dumps({"data": pixels.reshape(10, -1), "labels": list(range(10))})
        (folder / (f"data_batch_{number + 1}" if number < 5 else "test_batch")).write_bytes(content)
        found["train" if number < 5 else "test"] += zip(names, pixels.transpose(0, 2, 3, 1), strict=True)
    return found


def svhn(root):
    import scipy.io

    found = {}
    for number, split in enumerate(("train", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
        scipy.io.savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(1, 11).reshape(10, 1)})
        found[split] = [(str((at + 1) % 10), pixels[..., at]) for at in range(10)]
    return found


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    names = CATALOG["stl10"].class_names
    (folder / "class_names.txt").write_text("\n".join(names))
    found = {}
    for number, split in enumerate(("train", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 3, 96, 96), dtype=np.uint8)
        (folder / f"{split}_X.bin").write_bytes(pixels.tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
        found[split] = list(zip(names, pixels.transpose(0, 3, 2, 1), strict=True))
    return found


def flowers102(root):
    import scipy.io

    folder = root / "flowers-102"
    for number in range(1, 307):
        save(folder / "jpg" / f"image_{number:05d}.jpg", number)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": [(number - 1) % 102 + 1 for number in range(1, 307)]})
    names, numbers = CATALOG["flowers102"].class_names, np.arange(1, 103)
    splits = {"trnid": numbers, "valid": numbers + 102, "tstid": numbers + 204}
    scipy.io.savemat(folder / "setid.mat", splits)
    return {
        split: [(names[at], int(number)) for at, number in enumerate(splits[name])]
        for split, name in (("train", "trnid"), ("validation", "valid"), ("test", "tstid"))
    }


LAYOUTS = (
    *(eurosat, country211, dtd, food101, gtsrb, fgvc_aircraft, oxford_iiit_pet, caltech101, caltech256, pascal_voc),
    *(mnist, cifar10, svhn, stl10, flowers102),
)


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
