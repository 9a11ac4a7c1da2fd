"""A broken image stops a run before it begins, unless it is left out, and then the data says so."""

import dataclasses
import shutil

import numpy as np
import pytest
from sample_images import encoded, picture

from randlora_core.datasets import CATALOG, decoding, load_data
from randlora_core.datasets.decoding import decode_all


@pytest.fixture
def toys(tmp_path, monkeypatch, write_class_folders):
    """Class folders with one broken training image and one broken test image."""
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    write_class_folders(tmp_path / "toys" / "train", {"ball": 10, "kite": 10})
    write_class_folders(tmp_path / "toys" / "test", {"ball": 4, "kite": 4}, first=50)
    for path in ("train/kite/003.png", "test/ball/001.png"):
        (tmp_path / "toys" / path).write_bytes(encoded(1)[:60])
    return tmp_path


@pytest.mark.parametrize("choice", [{}, {"shots": 1}, {"fraction": 0.5, "seed": 3}])
def test_a_broken_image_is_named_before_any_image_is_asked_for(toys, choice):
    with pytest.raises(ValueError, match=r"'toys': 2 of 28 images cannot be read, the first .*/003\.png: ") as caught:
        load_data("toys", root=toys, **choice)
    assert "leave_out_unreadable=true" in str(caught.value) and "\n" not in str(caught.value)


def test_broken_images_are_left_out_as_asked_for(toys):
    data = load_data("toys", root=toys, leave_out_unreadable=True)
    assert sum(data.sizes.values()) == 26 and data.sizes["test"] == 7
    left_out = sorted(data.left_out)
    assert left_out[0].startswith(f"test: {toys}/toys/test/ball/001.png: ") and "003.png: " in left_out[1]
    for split in (data.train, data.validation, data.test):
        for index in range(len(split)):
            split.image(index)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(np.asarray(data.test.image(1)), np.asarray(picture(52)))
    # The fingerprint is that of the files; which images count is told by their positions.
    with pytest.raises(ValueError, match="cannot be read"):
        load_data("toys", root=toys)


def test_nothing_is_left_out_of_a_clean_set(parquet_root):
    clean = load_data("animals", root=parquet_root)
    data = load_data("animals", root=parquet_root, leave_out_unreadable=True)
    assert data.left_out == clean.left_out == () and data.sizes == clean.sizes


def test_unreadable_images_cost_a_set_its_place_in_the_papers_row(toys, monkeypatch):
    sizes = {"num_classes": 2, "num_train": 15, "num_validation": 5, "num_test": 8}
    monkeypatch.setitem(CATALOG, "cub200", dataclasses.replace(CATALOG["cub200"], **sizes))
    (toys / "toys").rename(toys / "cub200")
    data = load_data("cub200", root=toys, leave_out_unreadable=True)
    assert data.is_subset and data.sizes["test"] == 7 and data.sizes["train"] + data.sizes["validation"] == 19


def test_unused_images_do_not_stop_a_run(toys, monkeypatch, write_class_folders):
    for path in ("train/kite/003.png", "test/ball/001.png"):
        (toys / "toys" / path).write_bytes(encoded(7))
    write_class_folders(toys / "toys" / "validation", {"ball": 3, "kite": 3}, first=90)
    (toys / "toys" / "validation" / "ball" / "000.png").write_bytes(b"")
    (toys / "toys").rename(toys / "cub200")
    with pytest.raises(ValueError, match="the first validation: "):
        load_data("cub200", root=toys)
    sizes = {"num_classes": 2, "num_train": 15, "num_validation": 5, "num_test": 8}
    monkeypatch.setitem(CATALOG, "cub200", dataclasses.replace(CATALOG["cub200"], **sizes))
    data = load_data("cub200", root=toys)  # the paper's validation images come out of the 20 training images
    assert data.sizes == {"train": 15, "validation": 5, "test": 8} and data.left_out == ()


def test_joined_splits_name_their_own_images(toys, monkeypatch, write_class_folders):
    write_class_folders(toys / "toys" / "validation", {"ball": 3, "kite": 3}, first=90)
    (toys / "toys" / "validation" / "kite" / "002.png").write_bytes(b"")
    (toys / "toys").rename(toys / "cub200")
    # The 20 + 6 images, cut otherwise.
    sizes = {"num_classes": 2, "num_train": 22, "num_validation": 4, "num_test": 8}
    monkeypatch.setitem(CATALOG, "cub200", dataclasses.replace(CATALOG["cub200"], **sizes))
    data = load_data("cub200", root=toys, leave_out_unreadable=True)
    assert sum(data.sizes.values()) == 34 - 3
    assert sorted(line.split(": ")[1].removeprefix(f"{toys}/cub200/") for line in data.left_out) == [
        "test/ball/001.png",
        "train/kite/003.png",
        "validation/kite/002.png",
    ]
    for split in (data.train, data.validation, data.test):
        assert [split.image(index).size for index in range(len(split))] == [(10, 8)] * len(split)


def refuse(*arguments):
    raise AssertionError("decoded again")


def test_images_are_decoded_once_for_all_runs_until_they_change(toys, monkeypatch):
    first = load_data("toys", root=toys, leave_out_unreadable=True)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_all", refuse)
        assert load_data("toys", root=toys, leave_out_unreadable=True).left_out == first.left_out
        shutil.copy(toys / "toys/train/kite/004.png", toys / "toys/train/kite/003.png")
        with pytest.raises(AssertionError, match="decoded again"):
            load_data("toys", root=toys, leave_out_unreadable=True)
    (line,) = load_data("toys", root=toys, leave_out_unreadable=True).left_out
    assert "001.png" in line


@pytest.mark.parametrize("harm", ["", "[]", '{"train": 3}'])
def test_a_harmed_cache_is_made_again(toys, harm):
    first = load_data("toys", root=toys, leave_out_unreadable=True)
    (kept,) = (toys / "cache" / "decoded").iterdir()
    content = kept.read_text()
    kept.write_text(harm)
    assert load_data("toys", root=toys, leave_out_unreadable=True).left_out == first.left_out
    assert kept.read_text() == content


def test_embedded_sets_are_not_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "decode_all", refuse)
    assert load_data("digits").left_out == ()


def test_results_come_in_order_from_several_threads(monkeypatch):
    class Source:
        labels = np.zeros(1234, dtype=np.int64)

        def image(self, index):
            if index % 100 == 7:
                raise OSError(f"broken\n{index}")
            return index

    monkeypatch.setattr(decoding, "IMAGES_AT_A_TIME", 10)
    found = list(decode_all(Source(), lambda image: image))
    assert found == [f"broken {index}" if index % 100 == 7 else index for index in range(1234)]
