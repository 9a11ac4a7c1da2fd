"""Choice of a learning rate per method from one grid rule, on validation score alone.

Every method gets the same number of values, neighbours of its own centre on the grid 1, 2, 5, 10, 20, 50, ... (steps of
2 or 2.5; a coarser grid reverses rankings). Where the best score lies at an end of what was tried, be it of one value
or of several that are equal, two more values beyond that end are tried, until the best ones have tried neighbours on
both sides or the widening's limit is reached. A tie goes to the lower middle of the tied values. The tuning's seed is
none of the comparison's, which train afresh.

The choice is never stored: it is read off the tuning's records, which are committed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from randlora_core.experiment.records.reading import Record, label_of, validation_of

MANTISSAS = (1, 2, 5)
WIDENING = 2  # values added beyond an end at a time


def grid_value(index: int) -> float:
    """Value number `index` of the grid: 0 -> 1, 1 -> 2, 2 -> 5, 3 -> 10, -1 -> 0.5."""
    exponent, position = divmod(index, len(MANTISSAS))
    return float(f"{MANTISSAS[position]}e{exponent}")  # parsed, so that 5e-05 is the same float everywhere


def grid_index(value: float) -> int:
    """Number of the grid value nearest to `value` on a logarithmic scale.

    Raises:
        ValueError: `value` is not a positive number.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"learning rate {value!r} is not a positive number")
    start = len(MANTISSAS) * math.floor(math.log10(value))
    return min(range(start - 1, start + len(MANTISSAS) + 2), key=lambda index: abs(math.log(grid_value(index) / value)))


def initial_grid(centre: float, num_values: int) -> list[float]:
    """`num_values` neighbouring grid values around the one nearest to `centre`, ascending.

    Raises:
        ValueError: Fewer than 3 values, which have no interior, or a centre that is not a positive number.
    """
    if num_values < 3:
        raise ValueError(f"a learning-rate grid of {num_values} values; accepted: 3 or more")
    first = grid_index(centre) - num_values // 2
    return [grid_value(index) for index in range(first, first + num_values)]


def choose(scores: Mapping[float, float | None]) -> float | None:
    """The value of the best score; None where no run has one.

    Args:
        scores: Learning rate -> validation score, None for a failed run.

    Returns:
        The lower middle of the values that share the best score.
    """
    tied = best_values(scores)
    return tied[(len(tied) - 1) // 2] if tied else None


def best_values(scores: Mapping[float, float | None]) -> list[float]:
    """The values that share the best score, ascending; none where no run has one."""
    known = {value: score for value, score in scores.items() if score is not None}
    return sorted(value for value, score in known.items() if score == max(known.values()))


def widen(scores: Mapping[float, float | None], limit: int) -> list[float]:
    """The values to try next: beyond the end at which the best score lies, or none.

    Where both ends share the best score, the upper one comes first.

    Args:
        scores: Learning rate -> validation score for everything tried, None for a failed run.
        limit: Number of values after which nothing is added.

    Returns:
        Up to two grid values, ascending; empty where the best values are interior, the limit is reached, or where
        every run failed.
    """
    best = best_values(scores)
    room = min(WIDENING, limit - len(scores))
    if not best or room < 1:
        return []
    if best[-1] == max(scores):
        return [grid_value(grid_index(best[-1]) + step) for step in range(1, room + 1)]
    if best[0] == min(scores):
        return [grid_value(grid_index(best[0]) - step) for step in range(room, 0, -1)]
    return []


def scores_of(records: Iterable[Record]) -> dict[float, float | None]:
    """Learning rate -> validation score of the records of one tuning, None for a failed run.

    Raises:
        ValueError: Two records are of one learning rate, so that the choice would depend on which is read.
    """
    scores: dict[float, float | None] = {}
    for record in records:
        value = record["config"]["training"]["learning_rate"]
        if value in scores:
            label = label_of(record["config"])
            raise ValueError(f"tuning records hold learning rate {value} of {label} twice; accepted: once")
        scores[value] = validation_of(record)
    return scores


def next_values(scores: Mapping[float, float | None], *, centre: float, num_values: int, limit: int) -> Sequence[float]:
    """What to try next for one method: the initial grid, then what `widen` adds; empty when the tuning is done."""
    return widen(scores, limit) if scores else initial_grid(centre, num_values)
