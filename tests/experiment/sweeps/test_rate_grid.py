import itertools
import math

import pytest
from fake_runs import make_record

from randlora_core.experiment.sweeps.rate_grid import (
    choose,
    grid_index,
    grid_value,
    initial_grid,
    next_values,
    scores_of,
    widen,
)


def search(score, centre, num_values=7, limit=13):
    """The tuning's loop with a score function in place of runs."""
    scores = {}
    while values := next_values(scores, centre=centre, num_values=num_values, limit=limit):
        assert not set(values) & set(scores), "a value was asked for twice"
        scores |= {value: score(value) for value in values}
    return scores


def test_the_grid_has_steps_of_at_most_two_and_a_half():
    values = [grid_value(index) for index in range(-30, 12)]
    assert values == sorted(values)
    assert max(b / a for a, b in itertools.pairwise(values)) <= 2.5 * (1 + 1e-12)
    assert {0.0001, 0.0002, 0.0005, 0.001, 1.0, 5.0, 20.0} <= set(values)
    assert [grid_index(value) for value in values] == list(range(-30, 12))
    assert grid_value(grid_index(0.0034)) == 0.005 and grid_value(grid_index(0.0030)) == 0.002  # 0.00316 is between
    assert grid_value(grid_index(0.98e-3)) == 0.001


@pytest.mark.parametrize("centre", [1e-3, 3e-3, 0.98e-2])
@pytest.mark.parametrize("num_values", [3, 6, 7])
def test_every_method_gets_the_same_number_of_values(centre, num_values):
    grid = initial_grid(centre, num_values)
    assert len(grid) == num_values and grid == sorted(grid)
    assert grid_value(grid_index(centre)) == grid[num_values // 2]


@pytest.mark.parametrize("centre", [0.0, -1.0, math.nan, math.inf])
def test_a_centre_is_a_positive_number(centre):
    with pytest.raises(ValueError, match="positive"):
        initial_grid(centre, 7)


def test_a_grid_has_an_interior():
    with pytest.raises(ValueError, match="2 values"):
        initial_grid(1e-3, 2)


@pytest.mark.parametrize("best", [1e-5, 1e-4, 1e-3, 1e-2, 0.1])
def test_widening_finds_an_optimum_outside_the_first_grid(best):
    scores = search(lambda value: -abs(math.log(value / best)), centre=1e-3)
    chosen = choose(scores)
    assert chosen == best and min(scores) < chosen < max(scores)
    assert len(scores) <= 13
    steps = sorted(grid_index(value) for value in scores)
    assert steps == list(range(steps[0], steps[-1] + 1)), "the grid has a gap"


def test_widening_ends_at_its_limit():
    scores = search(lambda value: value, centre=1e-3, limit=10)
    assert len(scores) == 10 and choose(scores) == max(scores)
    assert widen(scores, 10) == [] and len(widen(scores, 11)) == 1


def test_an_interior_choice_is_not_widened():
    scores = search(lambda value: -abs(math.log(value / 2e-3)), centre=1e-3)
    assert len(scores) == 7


def test_a_tie_at_an_end_is_widened_there():
    """The choice is the lower of two equal values, but nothing is known above the upper one."""
    assert widen({1e-5: 0.5, 2e-5: 0.9, 5e-5: 0.7, 1e-4: 0.9}, 13) == [2e-4, 5e-4]
    assert widen({1e-5: 0.9, 2e-5: 0.9, 5e-5: 0.7, 1e-4: 0.8}, 13) == [2e-6, 5e-6]
    both = {1e-5: 0.9, 2e-5: 0.7, 5e-5: 0.9}
    assert widen(both, 13) == [1e-4, 2e-4]
    assert widen(both | {1e-4: 0.8, 2e-4: 0.8}, 13) == [2e-6, 5e-6]


def test_ties_go_to_the_lower_middle():
    assert choose({1.0: 0.5, 2.0: 0.9, 5.0: 0.9, 10.0: 0.9, 20.0: 0.1}) == 5.0
    assert choose({1.0: 0.5, 2.0: 0.9, 5.0: 0.9, 10.0: 0.3}) == 2.0
    assert choose({10.0: 0.9, 1.0: 0.5, 5.0: 0.9}) == 5.0


def test_a_diverged_run_bounds_the_grid_but_is_never_chosen():
    scores = {0.1: 0.2, 0.2: 0.8, 0.5: None}
    assert choose(scores) == 0.2 and widen(scores, 13) == []
    assert choose({0.1: None, 0.2: None}) is None and widen({0.1: None}, 13) == []


def test_the_choice_is_read_off_the_records():
    rates = {0.001: 0.6, 0.002: 0.9, 0.005: 0.7}
    records = [make_record("LoRA-4", "sum", 101, rate=rate, validation=score) for rate, score in rates.items()]
    records.append(make_record("LoRA-4", "sum", 101, rate=0.01, status="failed"))
    assert scores_of(records) == {**rates, 0.01: None} == scores_of(reversed(records))
    assert choose(scores_of(records)) == 0.002


def test_two_records_of_one_value_are_refused():
    records = [make_record("LoRA-4", "sum", seed, rate=0.001) for seed in (101, 102)]
    with pytest.raises(ValueError, match=r"0\.001 of LoRA-4 twice"):
        scores_of(records)
