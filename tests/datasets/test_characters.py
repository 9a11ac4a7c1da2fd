import errno
import hashlib
import shutil

import numpy as np
import pytest

from randlora_core.datasets import characters, fingerprint_data, load_data
from randlora_core.datasets.characters import (
    CHARACTERS,
    FONTS,
    TEST_ONLY_FONTS,
    TRAIN_FONTS,
    Characters,
    CharacterSource,
)
from randlora_core.datasets.stored import identify


def made(split: str) -> CharacterSource:
    characters_set = Characters()
    return characters_set.open(identify(characters_set))[split]


def pixels(source: CharacterSource, index: int) -> np.ndarray:
    return np.asarray(source.image(index))


def test_the_set_has_62_classes_with_distinct_names():
    data = load_data("characters")
    assert len(set(CHARACTERS)) == len(data.class_names) == len({name.casefold() for name in data.class_names}) == 62
    assert data.class_names[0] == "digit 0"
    assert data.class_names[CHARACTERS.index("A")] == "capital letter A"
    assert data.class_names[CHARACTERS.index("a")] == "lower-case letter a"
    assert data.sizes == {"train": 62 * 32, "validation": 62 * 8, "test": 62 * 8}
    assert not data.allow_flip and not data.is_subset and data.paper_name is None


def test_images_follow_from_their_number_and_not_from_the_order_of_access():
    source = made("train")
    for index in (len(source.labels) - 1, 1234, 50, 49, 0):
        np.testing.assert_array_equal(pixels(source, index), np.asarray(made("train")._draw(index)))


def refuse(*arguments):
    raise AssertionError("drawn again")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "arrays"


def test_images_are_drawn_once_for_all_processes(cache, monkeypatch):
    first = pixels(made("test"), 77).copy()
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(CharacterSource, "_draw", refuse)
    np.testing.assert_array_equal(pixels(made("test"), 77), first)
    monkeypatch.setattr(characters, "VERSION", characters.VERSION + 1)
    with pytest.raises(AssertionError, match="drawn again"):
        made("test").image(77)


@pytest.mark.parametrize("harm", ["truncated", "emptied", "another shape"])
def test_a_harmed_cache_is_drawn_again(cache, harm):
    first = pixels(made("test"), 77).copy()
    (file,) = cache.iterdir()
    content = file.read_bytes()
    if harm == "another shape":
        np.save(file, np.zeros((3, 56, 56, 3), np.uint8))
    else:
        file.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"")
    np.testing.assert_array_equal(pixels(made("test"), 77), first)
    assert [path.read_bytes() == content for path in cache.iterdir()] == [True]


def test_a_cache_that_cannot_be_written_costs_the_drawing_only(cache, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    source = made("test")
    np.testing.assert_array_equal(pixels(source, 5), np.asarray(source._draw(5)))
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    shutil.rmtree(cache.parent)
    cache.parent.write_text("a file in the folder's place")
    monkeypatch.setenv("RANDLORA_CACHE", str(cache.parent))
    np.testing.assert_array_equal(pixels(made("test"), 5), pixels(source, 5))


def test_without_a_home_there_is_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("RANDLORA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(characters.Path, "home", homeless)
    source = made("test")
    np.testing.assert_array_equal(pixels(source, 5), np.asarray(source._draw(5)))


def test_an_image_that_was_changed_by_its_user_stays_as_it_was():
    source = made("test")
    before = pixels(source, 3).copy()
    source.image(3).paste((0, 0, 0), (0, 0, 56, 56))
    np.testing.assert_array_equal(pixels(source, 3), before)


def test_images_differ_within_a_class_and_between_splits():
    train, test = made("train"), made("test")
    hashes = {
        hashlib.sha256(pixels(source, index).tobytes()).digest() for source in (train, test) for index in range(16)
    }
    assert len(hashes) == 32
    assert pixels(train, 0).shape == (56, 56, 3)


def test_half_of_the_test_fonts_are_new():
    train, test = made("train"), made("test")
    assert set(TRAIN_FONTS).isdisjoint(TEST_ONLY_FONTS) and set(FONTS) == {*TRAIN_FONTS, *TEST_ONLY_FONTS}
    assert {train.font(index) for index in range(len(train.labels))} == set(TRAIN_FONTS)
    fonts = [test.font(index) for index in range(len(test.labels))]
    assert set(fonts[0::2]) == set(TRAIN_FONTS) and set(fonts[1::2]) == set(TEST_ONLY_FONTS)


def test_characters_stay_legible():
    """The ink must not leave the picture: a nearest-centroid classifier on the undistorted size still beats chance."""
    train, test = made("train"), made("test")

    def ink(source: CharacterSource, number: int) -> np.ndarray:
        grey = np.asarray(source.image(number).convert("L").resize((14, 14)), dtype=float)
        grey = np.abs(grey - np.median(grey))
        return (grey - grey.mean()).ravel() / (grey.std() + 1e-6)

    classes = range(10)
    centroids = np.stack([np.mean([ink(train, label * 40 + k) for k in range(40)], axis=0) for label in classes])
    hits = [int(np.argmax(centroids @ ink(test, label * 8 + k)) == label) for label in classes for k in range(8)]
    # Chance is 10 %; 80 test images have a standard error of 3.4 % there.
    assert np.mean(hits) > 0.3


def test_the_fingerprint_needs_no_drawing_and_follows_the_recipe(monkeypatch):
    monkeypatch.setattr(CharacterSource, "_draw", refuse)
    first = fingerprint_data("characters")
    assert first == load_data("characters").fingerprint
    monkeypatch.setattr(characters, "VERSION", characters.VERSION + 1)
    assert fingerprint_data("characters") != first


def test_a_missing_font_is_named(monkeypatch, tmp_path):
    import matplotlib

    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    characters._font_folder.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"STIXGeneral\.ttf"):
            Characters()
    finally:
        characters._font_folder.cache_clear()
