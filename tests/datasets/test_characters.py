import hashlib

import numpy as np
import pytest

from randlora_core.datasets import load_data
from randlora_core.datasets.characters import CHARACTERS, FONTS, TEST_ONLY_FONTS, TRAIN_FONTS, CharacterSource


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
    forwards, backwards = CharacterSource("train"), CharacterSource("train")
    chosen = [0, 49, 50, 1234, len(forwards.labels) - 1]
    expected = [pixels(forwards, index) for index in chosen]
    found = [pixels(backwards, index) for index in reversed(chosen)][::-1]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_image_that_was_changed_by_its_user_stays_as_it_was():
    source = CharacterSource("test")
    before = pixels(source, 3).copy()
    source.image(3).paste((0, 0, 0), (0, 0, 56, 56))
    np.testing.assert_array_equal(pixels(source, 3), before)


def test_images_differ_within_a_class_and_between_splits():
    train, test = CharacterSource("train"), CharacterSource("test")
    hashes = {
        hashlib.sha256(pixels(source, index).tobytes()).digest() for source in (train, test) for index in range(16)
    }
    assert len(hashes) == 32
    assert pixels(train, 0).shape == (56, 56, 3)


def test_half_of_the_test_fonts_are_new():
    train, test = CharacterSource("train"), CharacterSource("test")
    assert set(TRAIN_FONTS).isdisjoint(TEST_ONLY_FONTS) and set(FONTS) == {*TRAIN_FONTS, *TEST_ONLY_FONTS}
    assert {train.font(index) for index in range(len(train.labels))} == set(TRAIN_FONTS)
    fonts = [test.font(index) for index in range(len(test.labels))]
    assert set(fonts[0::2]) == set(TRAIN_FONTS) and set(fonts[1::2]) == set(TEST_ONLY_FONTS)


def test_characters_stay_legible():
    """The ink must not leave the picture: a nearest-centroid classifier on the undistorted size still beats chance."""
    train, test = CharacterSource("train"), CharacterSource("test")

    def ink(source: CharacterSource, number: int) -> np.ndarray:
        grey = np.asarray(source.image(number).convert("L").resize((14, 14)), dtype=float)
        grey = np.abs(grey - np.median(grey))
        return (grey - grey.mean()).ravel() / (grey.std() + 1e-6)

    classes = range(10)
    centroids = np.stack([np.mean([ink(train, label * 40 + k) for k in range(40)], axis=0) for label in classes])
    hits = [int(np.argmax(centroids @ ink(test, label * 8 + k)) == label) for label in classes for k in range(8)]
    # Chance is 10 %; 80 test images have a standard error of 3.4 % there.
    assert np.mean(hits) > 0.3


def test_the_fingerprint_needs_no_drawing_and_depends_on_the_split():
    digests = []
    for split in ("train", "test"):
        source, digest = CharacterSource(split), hashlib.sha256()
        source.update(digest)
        digests.append(digest.hexdigest())
        assert not source._drawn
    assert digests[0] != digests[1]


def test_a_missing_font_is_named(monkeypatch, tmp_path):
    import matplotlib

    from randlora_core.datasets import characters

    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    characters._font_folder.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"STIXGeneral\.ttf"):
            CharacterSource("train")
    finally:
        characters._font_folder.cache_clear()
