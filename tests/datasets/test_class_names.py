import json
from pathlib import Path

import pytest

import randlora_core.datasets.prompts as prompts
from randlora_core.datasets import CATALOG, find_paper_dataset, fingerprint_data, load_data
from randlora_core.datasets.find import prompts_for
from randlora_core.datasets.prompts import DEFAULT_TEMPLATES, Prompts, check_class_order, readable_names


def names(folder: str, labels: list[str]) -> tuple[str, ...]:
    return readable_names(labels, prompts_for(folder))


PAPER = [entry for entry in CATALOG.values() if entry.paper_name]


def test_catalog_has_the_22_data_sets_of_the_paper():
    assert len(PAPER) == len({entry.paper_name for entry in PAPER}) == 22
    assert sum(entry.in_vision_suite for entry in PAPER) == 21
    # Column sums of table 7, so that a slip in any row shows.
    fields = ("num_classes", "num_train", "num_validation", "num_test", "epochs")
    sums = [sum(getattr(entry, field) for entry in PAPER) for field in fields]
    assert sums == [3108, 1745011, 69657, 257345, 400]
    assert [entry.epochs for entry in PAPER if entry.official_code_epochs] == [12]


def test_embedded_sets_have_a_row_that_says_what_they_hold():
    embedded = [entry for entry in CATALOG.values() if entry.embedded]
    assert [entry.key for entry in embedded] == ["digits", "characters"]
    for entry in embedded:
        data = load_data(entry.key)
        assert data.sizes == {"train": entry.num_train, "validation": entry.num_validation, "test": entry.num_test}
        assert data.class_names == entry.class_names and len(data.class_names) == entry.num_classes
        assert data.templates == entry.templates and not data.is_subset


def test_every_row_has_templates_and_names_or_takes_them_from_the_source():
    from_source = [entry.key for entry in CATALOG.values() if entry.class_names is None]
    assert from_source == ["caltech256", "cub200"]
    for entry in CATALOG.values():
        assert all(template.count("{}") == 1 for template in entry.templates), entry.key
        names = entry.class_names or ()
        assert len(names) in (entry.num_classes, 0) and all(names), entry.key
    assert CATALOG["svhn"].class_names == tuple("0123456789")


def test_hub_entries_say_that_nobody_has_tried_them():
    hub = {entry.key: entry.hub for entry in PAPER if entry.hub}
    assert {entry.key for entry in PAPER} - set(hub) == {"fgvc_aircraft", "pascal_voc", "country211", "ucf101"}
    assert not any(entry.is_verified for entry in hub.values())
    assert hub["svhn"].config == "cropped_digits" and (hub["cifar100"].image, hub["cifar100"].label) == (
        "img",
        "fine_label",
    )
    assert hub["imagenet"].address == "https://huggingface.co/datasets/ILSVRC/imagenet-1k"


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


def test_sizes_are_compared_with_table_7():
    entry = find_paper_dataset("mnist")
    assert entry.has_sizes(10, 55000, 5000, 10000)
    assert not entry.has_sizes(10, 55000, 5000, 9999) and not entry.has_sizes(10, 48000, 12000, 10000)
    assert find_paper_dataset("caltech101").has_sizes(101, 6247, 694, 1736)  # table 7 prints 6,941 with validation


def test_every_class_list_of_clip_has_the_size_of_its_data_set():
    stored = json.loads(Path(prompts.__file__).with_name("clip_prompts.json").read_text())["datasets"]
    for key, entry in stored.items():
        expected = find_paper_dataset(key).num_classes
        extra = 1 if key == "caltech101" else 0  # the background class
        assert len(entry["names"]) in (expected + extra, 0), key
        assert all(template.count("{}") == 1 for template in entry["templates"]), key


def test_templates_are_clips_or_the_default():
    assert CATALOG["gtsrb"].templates[0] == 'a zoomed in photo of a "{}" traffic sign.'
    assert Prompts().templates == DEFAULT_TEMPLATES
    imagenet = CATALOG["imagenet"].templates
    assert imagenet[0] == DEFAULT_TEMPLATES[0] and len(imagenet) == 80 and "a bad photo of a {}." in imagenet


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
        ("dtd", ["7", "8"], ("cracked", "crosshatched")),
        ("dtd", ["0", "1"], ("0", "1")),
        ("gtsrb", ["0", "1", "2"], ("0", "1", "2")),
        ("caltech256", ["003.backpack", "252.car-side-101"], ("backpack", "car side")),
        (
            "cub200",
            ["001.Black_footed_Albatross", "002.Laysan_Albatross"],
            ("Black footed Albatross", "Laysan Albatross"),
        ),
        ("mnist", ["3 - three", "4 - four"], ("3", "4")),
        ("imagenet_part", ["n01440764", "n02101388"], ("tench", "Brittany dog")),
        ("imagenet_part", ["tench, Tinca tinca", "Brittany spaniel"], ("tench", "Brittany dog")),
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


def test_numbers_of_all_classes_are_official_whether_from_zero_or_one():
    for first in (0, 1):
        labels = [str(number) for number in range(first, first + 47)]
        assert names("dtd", labels) == CATALOG["dtd"].class_names


def test_a_label_that_no_list_knows_stays():
    labels = [*CATALOG["cifar10"].class_names[:9], "zebra"]
    assert names("cifar10", labels)[8:] == ("ship", "zebra")


def test_imagenet_has_two_cranes_told_apart_by_their_place():
    import timm.data

    labels = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    found = names("imagenet", labels)
    assert found == CATALOG["imagenet"].class_names and (found[134], found[517]) == ("crane bird", "construction crane")
    check_class_order(labels, CATALOG["imagenet"].prompts)


def swapped(labels: list[str], first: int, second: int) -> list[str]:
    labels = list(labels)
    labels[first], labels[second] = labels[second], labels[first]
    return labels


IMAGENET = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "hen"]


@pytest.mark.parametrize(
    ("folder", "labels"),
    [
        *((entry.key, list(entry.class_names)) for entry in PAPER if entry.class_names and entry.key != "imagenet"),
        ("gtsrb_part", ["stop", "no vehicles"]),
        ("gtsrb", [f"{number:05d}" for number in range(43)]),
        ("eurosat", ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway"]),
        ("caltech101", ["Faces", "Leopards", "accordion", "yin_yang"]),
        ("caltech101", ["accordion", "Faces", "Leopards", "yin_yang"]),
        ("cub200", ["002.Laysan_Albatross", "001.Black_footed_Albatross"]),
        ("imagenet", IMAGENET[:3]),
        ("toys", ["kite", "ball"]),
    ],
)
def test_official_and_alphabetical_orders_are_accepted(folder, labels):
    check_class_order(labels, prompts_for(folder))


@pytest.mark.parametrize(
    ("folder", "labels", "message"),
    [
        ("cifar10", swapped(CATALOG["cifar10"].class_names, 3, 5), "class 3 is called 'dog', .* has 'cat'"),
        ("gtsrb", list(CATALOG["gtsrb"].class_names[::-1]), "class 0 is called 'white circle with gray strike"),
        ("mnist", swapped([str(digit) for digit in range(10)], 8, 9), "class 8 is called '9', .* has '8'"),
        ("flowers102_part", ["013_king_protea", "012_colt's_foot"], "class 0 is called '013_king_protea'"),
        ("eurosat", swapped(["AnnualCrop", "Forest", "Highway"], 0, 2), "class 0 is called 'Highway', .* 'annual crop"),
        ("imagenet", swapped(IMAGENET, 0, 1), "class 0 is called 'goldfish, Carassius auratus', .* has 'tench'"),
    ],
)
def test_a_permuted_list_names_the_first_difference(folder, labels, message):
    with pytest.raises(ValueError, match=message):
        check_class_order(labels, prompts_for(folder))


def test_a_permuted_set_is_neither_loaded_nor_identified(tmp_path, write_parquet):
    classes = swapped(CATALOG["cifar10"].class_names, 3, 5)
    for split in ("train", "test"):
        write_parquet(tmp_path / "cifar10" / f"{split}-00000-of-00001.parquet", list(range(10)) * 2, classes)
    for function in (load_data, fingerprint_data):
        with pytest.raises(ValueError, match=r"'cifar10': class 3 is called 'dog'"):
            function("cifar10", root=tmp_path)
