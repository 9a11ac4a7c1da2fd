import numpy as np
import pytest

from randlora_core.datasets.subsets import MAX_VALIDATION, carve_validation, few_shot, fractional


def shuffled_labels(*counts: int) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(3).permutation(labels)


def test_validation_takes_a_fifth_of_each_class_and_at_least_one():
    labels = shuffled_labels(100, 23, 3, 2, 1)
    train, validation = carve_validation(labels)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert np.bincount(labels[validation], minlength=5).tolist() == [20, 4, 1, 1, 0]
    assert np.bincount(labels[train], minlength=5).tolist() == [80, 19, 2, 1, 1]


def test_validation_is_limited_in_large_sets():
    labels = shuffled_labels(*[6000] * 10)
    _, validation = carve_validation(labels)
    assert np.bincount(labels[validation]).tolist() == [MAX_VALIDATION // 10] * 10


def test_validation_is_not_simply_the_first_images():
    _, validation = carve_validation(np.zeros(100, dtype=np.int64))
    assert validation.tolist() != list(range(20)) and validation.max() > 50


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_few_shot_subsets_are_nested_and_balanced(seed):
    labels = shuffled_labels(40, 40, 40)
    previous: set[int] = set()
    for shots in (1, 2, 4, 8, 16, 32):
        positions, short = few_shot(labels, shots, seed)
        assert np.bincount(labels[positions]).tolist() == [shots] * 3
        assert previous < set(positions.tolist()) and short == {}
        previous = set(positions.tolist())


def test_few_shot_choice_follows_the_seed():
    labels = shuffled_labels(50, 50)
    choices = {tuple(few_shot(labels, 4, seed)[0]) for seed in range(10)}
    assert len(choices) == 10
    assert np.array_equal(few_shot(labels, 4, 5)[0], few_shot(labels, 4, 5)[0])


def test_short_classes_give_all_they_have():
    labels = shuffled_labels(9, 3, 16)
    positions, short = few_shot(labels, 8, 0)
    assert np.bincount(labels[positions]).tolist() == [8, 3, 8]
    assert short == {1: 3}


def test_more_shots_than_any_class_name_the_largest_class():
    with pytest.raises(ValueError, match=r"shots=17 .*largest class has 16 .*1 to 16"):
        few_shot(shuffled_labels(9, 3, 16), 17, 0)


@pytest.mark.parametrize("shots", [0, -1, 2.0, True, "4"])
def test_bad_shots_are_rejected(shots):
    with pytest.raises(ValueError, match="positive integers"):
        few_shot(shuffled_labels(9), shots, 0)


def test_fractions_are_nested_stratified_and_start_with_the_few_shots():
    labels = shuffled_labels(40, 20, 1)
    half, quarter = fractional(labels, 0.5, 2), fractional(labels, 0.25, 2)
    assert np.bincount(labels[half]).tolist() == [20, 10, 1]
    assert np.bincount(labels[quarter]).tolist() == [10, 5, 1]
    assert set(quarter) < set(half)
    assert set(few_shot(labels, 4, 2)[0]) < set(quarter)
    assert fractional(labels, 1, 2).tolist() == list(range(61))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), True, "half"])
def test_bad_fractions_are_rejected(fraction):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        fractional(shuffled_labels(9), fraction, 0)
