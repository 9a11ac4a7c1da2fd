"""Training, validation and test images of the paper's data sets have its sizes; those of others stay as they were."""

import dataclasses

import numpy as np
import pytest
from sample_images import picture

from randlora_core.datasets import CATALOG, load_data
from randlora_core.datasets.splits import JoinedSource, arrange
from randlora_core.datasets.subsets import carve, carve_validation


class Numbers:
    """Images that show their number, counted from `first`."""

    def __init__(self, count, num_classes, first=0):
        self.labels = np.arange(count) % num_classes
        self.first = first

    def image(self, index):
        return picture(self.first + index)

    def where(self, index):
        return f"number {self.first + index}"


# Split sizes as the sources have them, and what training, validation and test become.
STORED = {
    "stanford_cars": ({"train": 8144, "test": 8041}, (7330, 814, 8041)),
    "dtd": ({"train": 1880, "validation": 1880, "test": 1880}, (3384, 376, 1880)),
    "eurosat": ({"train": 27000}, (21600, 2700, 2700)),
    "gtsrb": ({"train": 26640, "test": 12630}, (23976, 2664, 12630)),
    "mnist": ({"train": 60000, "test": 10000}, (55000, 5000, 10000)),
    "resisc45": ({"train": 18900, "validation": 6300, "test": 6300}, (17010, 1890, 6300)),
    "caltech101": ({"train": 8677}, (6247, 694, 1736)),
    "caltech256": ({"train": 30607}, (22037, 2448, 6122)),
    "flowers102": ({"train": 1020, "validation": 1020, "test": 6149}, (1020, 1020, 6149)),
    "ucf101": ({"train": 7639, "validation": 1898, "test": 3783}, (7639, 1898, 3783)),
}


@pytest.mark.parametrize("key", STORED)
def test_the_sizes_of_table_7_come_out_of_what_the_sources_have(key):
    stored, expected = STORED[key]
    entry = CATALOG[key]
    sources = {
        split: Numbers(count, entry.num_classes, first)
        for first, (split, count) in zip((0, 10**6, 2 * 10**6), stored.items(), strict=False)
    }
    parts = arrange(sources, entry)
    sizes = tuple(len(parts[split][1]) for split in ("train", "validation", "test"))
    assert sizes == expected and entry.has_sizes(entry.num_classes, *sizes)
    seen = [parts[split][0].where(at) for split in parts for at in parts[split][1]]
    assert len(set(seen)) == len(seen) == sum(expected)  # no image serves twice
    if "test" in stored:
        assert parts["test"][0] is sources["test"]
        held_out = {parts["validation"][0].where(at) for at in parts["validation"][1]}
        assert held_out.isdisjoint(sources["test"].where(at) for at in range(stored["test"]))


def test_eurosat_holds_out_as_many_images_of_every_class():
    source = Numbers(27000, 10)
    source.labels = np.repeat(np.arange(10), [2000, 3000, 2500, 2500, 3000, 3000, 3000, 3000, 2500, 2500])
    parts = arrange({"train": source}, CATALOG["eurosat"])
    for split in ("validation", "test"):
        assert np.bincount(source.labels[parts[split][1]]).tolist() == [270] * 10


def test_other_sizes_keep_a_fifth_for_validation():
    entry = CATALOG["mnist"]
    source, test = Numbers(400, 10), Numbers(100, 10)
    expected = carve_validation(source.labels)
    for chosen in (entry, None):
        parts = arrange({"train": source, "test": test}, chosen)
        assert np.array_equal(parts["train"][1], expected[0]) and np.array_equal(parts["validation"][1], expected[1])
    own = {"train": source, "validation": Numbers(30, 10), "test": test}
    assert [len(arrange(own, entry)[split][1]) for split in own] == [400, 30, 100]


def test_a_test_split_is_cut_from_nothing_but_the_whole_set():
    with pytest.raises(ValueError, match="26999 images without a test split; accepted are a test split, or all 27000"):
        arrange({"train": Numbers(26999, 10)}, CATALOG["eurosat"])


def test_joined_sources_show_and_name_the_images_of_both():
    joined = JoinedSource([Numbers(3, 2), Numbers(4, 2, first=50)])
    assert joined.labels.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert [joined.where(at) for at in (0, 2, 3, 6)] == ["number 0", "number 2", "number 50", "number 53"]
    np.testing.assert_array_equal(np.asarray(joined.image(5)), np.asarray(picture(52)))


@pytest.mark.parametrize(("count", "counts"), [(7, (50, 30, 20)), (10, (7, 7, 7)), (376, (40,) * 94)])
def test_carving_takes_the_exact_number_and_the_same_share_of_every_class(count, counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    kept, held_out = carve(labels, count, "validation")
    assert sorted([*kept, *held_out]) == list(range(len(labels))) and len(held_out) == count
    taken = np.bincount(labels[held_out], minlength=len(counts))
    assert np.abs(taken - count * np.array(counts) / len(labels)).max() < 1
    assert np.array_equal(carve(labels, count, "validation")[1], held_out)
    assert not np.array_equal(carve(labels, count, "test")[1], held_out)


def small(key, **sizes):
    """The catalog's row with sizes that a test can write."""
    return dataclasses.replace(CATALOG[key], **sizes)


CLASSES = ("airplane", "automobile", "bird")


@pytest.fixture
def paper_root(tmp_path, monkeypatch, write_class_folders):
    """A folder `cifar10` with 30 + 9 images, the sizes of its row in table 7 for this test, and a copy as variant."""
    entry = small("cifar10", num_classes=3, num_train=23, num_validation=7, num_test=9)
    monkeypatch.setitem(CATALOG, "cifar10", entry)
    for name in ("cifar10", "cifar10_blurred"):
        write_class_folders(tmp_path / name / "train", dict.fromkeys(CLASSES, 10))
        write_class_folders(tmp_path / name / "test", dict.fromkeys(CLASSES, 3), first=100)
    return tmp_path


def test_only_the_whole_set_under_its_own_name_is_the_papers(paper_root):
    whole = load_data("cifar10", root=paper_root)
    assert whole.sizes == {"train": 23, "validation": 7, "test": 9}
    assert not whole.is_subset and whole.paper_name == "CIFAR10" and whole.name == "cifar10"
    variant = load_data("cifar10_blurred", root=paper_root)
    assert variant.sizes == {"train": 24, "validation": 6, "test": 9}
    assert variant.is_subset and variant.name == "cifar10_blurred"
    assert variant.fingerprint != whole.fingerprint  # the same files, cut otherwise
    (paper_root / "cifar10" / "test" / "bird" / "002.png").unlink()
    part = load_data("cifar10", root=paper_root)
    assert part.is_subset and part.sizes == {"train": 24, "validation": 6, "test": 8}


def test_an_alias_finds_the_folder(paper_root):
    (paper_root / "cifar10").rename(paper_root / "cars")
    CATALOG_ROW = small("stanford_cars", num_classes=3, num_train=23, num_validation=7, num_test=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CATALOG, "stanford_cars", CATALOG_ROW)
        data = load_data("stanford_cars", root=paper_root)
        assert data.sizes["train"] == 23 and data.name == "stanford_cars" and not data.is_subset


def test_chosen_images_can_be_told_from_others(paper_root):
    whole = load_data("cifar10", root=paper_root)
    chosen = {
        (shots, seed): load_data("cifar10", root=paper_root, shots=shots, seed=seed)
        for shots, seed in ((1, 0), (2, 0), (4, 0), (2, 1))
    }
    assert len({whole.chosen, *(data.chosen for data in chosen.values())}) == 5
    assert chosen[2, 0].chosen == load_data("cifar10", root=paper_root, shots=2, seed=0).chosen
    assert len(whole.chosen) == 64 and int(whole.chosen, 16)
    for few, many in (((1, 0), (2, 0)), ((2, 0), (4, 0))):
        assert set(chosen[few].train.indices) < set(chosen[many].train.indices) < set(whole.train.indices)


def test_a_source_that_calls_its_test_split_validation_is_understood(tmp_path, write_class_folders):
    for folder in ("train", "val"):
        write_class_folders(tmp_path / "food101" / folder, {"apple_pie": 5, "ramen": 5}, first=len(folder))
        write_class_folders(tmp_path / "toys" / folder, {"ball": 5, "kite": 5})
    assert load_data("food101", root=tmp_path).sizes == {"train": 8, "validation": 2, "test": 10}
    with pytest.raises(ValueError, match="no test split"):
        load_data("toys", root=tmp_path)
