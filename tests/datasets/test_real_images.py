"""Real data sets, where the environment variable RANDLORA_DATA names a folder of them."""

import os
from pathlib import Path

import pytest

from randlora_core.datasets import load_data

ROOT = os.environ.get("RANDLORA_DATA")

EXPECTED = {
    "mnist": ((60000, 10000, 10), False, "3"),
    "gtsrb": ((1290, 516, 43), True, "stop"),
    "caltech101": ((2020, 1010, 101), True, "side of a car"),
    "flowers102_part": ((1778, 890, 89), True, "colt's foot"),
    "food101": ((2020, 1010, 101), True, "apple pie"),
    "stanford_cars": ((1954, 980, 196), True, "Tesla Model S Sedan 2012"),
    "cifar10": ((5000, 1000, 10), True, "airplane"),
    "cifar100": ((10000, 2000, 100), True, "maple tree"),
    "imagenette": ((1000, 400, 10), False, "garbage truck"),
    "tiny_imagenet": ((30000, 2000, 200), False, "goldfish"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_real_data_sets_are_read_whole(name):
    if ROOT is None:
        pytest.skip("RANDLORA_DATA does not name a folder of data sets")
    if not Path(ROOT, name).is_dir():
        pytest.skip(f"RANDLORA_DATA has no folder {name}")
    (num_train, num_test, num_classes), is_subset, class_name = EXPECTED[name]
    data = load_data(name, root=ROOT)
    assert data.sizes["train"] + data.sizes["validation"] == num_train
    assert data.sizes["test"] == num_test and len(data.class_names) == num_classes
    assert data.is_subset == is_subset and class_name in data.class_names
    assert not any("_" in name for name in data.class_names)
    for split in (data.train, data.validation, data.test):
        for index in range(0, len(split), max(1, len(split) // 20)):
            image = split.image(index)
            assert image.mode == "RGB" and min(image.size) >= 25
