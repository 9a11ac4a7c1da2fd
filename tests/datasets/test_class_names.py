import json
from pathlib import Path

import pytest

import randlora_core.datasets.prompts as prompts
from randlora_core.datasets import CATALOG, find_paper_dataset
from randlora_core.datasets.prompts import DEFAULT_TEMPLATES, readable_names, templates_for


def names(folder: str, labels: list[str]) -> tuple[str, ...]:
    return readable_names(labels, find_paper_dataset(folder))


def test_catalog_has_the_22_data_sets_of_the_paper():
    assert len({entry.key for entry in CATALOG}) == len({entry.paper_name for entry in CATALOG}) == 22
    assert sum(entry.in_vision_suite for entry in CATALOG) == 21
    # Column sums of table 7, so that a slip in any row shows.
    fields = ("num_classes", "num_train", "num_validation", "num_test", "epochs")
    sums = [sum(getattr(entry, field) for entry in CATALOG) for field in fields]
    assert sums == [3108, 1745011, 69657, 257345, 400]
    assert [entry.epochs for entry in CATALOG if entry.official_code_epochs] == [12]


@pytest.mark.parametrize(
    ("folder", "paper_name"),
    [
        ("gtsrb", "GTSRB"),
        ("cars", "Cars"),
        ("flowers102_part", "Flowers102"),
        ("MNIST", "MNIST"),
        ("cifar100", "CIFAR100"),
    ],
)
def test_folders_are_recognised(folder, paper_name):
    assert find_paper_dataset(folder).paper_name == paper_name


@pytest.mark.parametrize("folder", ["cifar1000", "tiny_imagenet", "imagenette", "my_mnist", "digits"])
def test_other_folders_are_not(folder):
    assert find_paper_dataset(folder) is None


def test_sizes_are_compared_whatever_the_validation_cut():
    entry = find_paper_dataset("mnist")
    assert entry.has_sizes(10, 60000, 10000)
    assert not entry.has_sizes(10, 60000, 9999) and not entry.has_sizes(10, 55000, 10000)


def test_every_class_list_of_clip_has_the_size_of_its_data_set():
    stored = json.loads(Path(prompts.__file__).with_name("clip_prompts.json").read_text())["datasets"]
    for key, entry in stored.items():
        expected = find_paper_dataset(key).num_classes
        extra = 1 if key == "caltech101" else 0  # the background class
        assert len(entry["names"]) in (expected + extra, 0), key
        assert all(template.count("{}") == 1 for template in entry["templates"]), key


def test_templates_are_clips_or_the_default():
    assert templates_for(find_paper_dataset("gtsrb"))[0] == 'a zoomed in photo of a "{}" traffic sign.'
    assert templates_for(find_paper_dataset("imagenet")) == templates_for(None) == DEFAULT_TEMPLATES


@pytest.mark.parametrize(
    ("folder", "labels", "expected"),
    [
        ("anything", ["guinea_pig", "dog"], ("guinea pig", "dog")),
        ("anything", ["n01440764_tench", "n02102040_English_springer"], ("tench", "English springer")),
        ("anything", ["001_ant", "002_bee"], ("ant", "bee")),
        ("anything", ["3_wheeler", "bicycle"], ("3 wheeler", "bicycle")),
        ("anything", ["0", "1"], ("0", "1")),
        ("flowers102_part", ["013_king_protea", "012_colt's_foot"], ("king protea", "colt's foot")),
        ("caltech101", ["Faces", "car_side", "ant"], ("off-center face", "side of a car", "ant")),
        ("gtsrb", ["00000", "00014"], ("red and white circle 20 kph speed limit", "stop")),
        ("eurosat", ["AnnualCrop", "Forest", "SeaLake"], ("annual crop land", "forest", "lake or sea")),
        ("ucf101", ["ApplyEyeMakeup", "YoYo"], ("Apply Eye Makeup", "Yo Yo")),
        ("stanford_cars", ["001_AM_General_Hummer_SUV_2000"], ("AM General Hummer SUV 2000",)),
        ("dtd", ["7", "8"], ("7", "8")),
    ],
)
def test_labels_become_readable(folder, labels, expected):
    assert names(folder, labels) == expected


def test_numbers_from_one_are_the_official_ones():
    found = names("flowers102", [str(number) for number in range(1, 103)])
    assert found[0] == "pink primrose" and found[-1] == "blackberry lily"


def test_country_codes_take_the_names_in_their_order():
    codes = sorted(f"{first}{second}" for first in "ABCDEFGHIJKLMNO" for second in "ABCDEFGHIJKLMNO")[:211]
    assert names("country211", codes)[0] == "Andorra"
    assert names("country211", codes[:5]) == tuple(codes[:5])
