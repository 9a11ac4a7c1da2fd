"""Is one method better than another: paired comparisons of two rows, and which row of a column is the best.

Every comparison that a report prints belongs to a family: the pairs that the comparison's file asks about, the column
"Against reference", or the marks of the best scores; of each, those on averages over data sets, which are the paper's
claims, are a family apart from those at single points. A family is a list of its own to a reader, so each is corrected
for its own number of comparisons (`statistics.holm`): 24 averages are not to be read in the light of 528 details.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from randlora_core.experiment.records.reading import label_of
from randlora_core.experiment.reports.results import Cell, Point, Results
from randlora_core.experiment.reports.statistics import Difference, holm, paired_difference

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PairedResult:
    """A paired comparison of two methods in score, `method` minus `rival`.

    Attributes:
        method: Label of the method.
        rival: Label of what it is compared with.
        points: Where: one point, or several over which both are averaged.
        difference: Observed difference and its intervals; None where the records of one are missing.
        seeds: Seeds that both have.
        parameter_ratio: Trainable parameters of the method over the rival's; None where one is missing or trains none.
        p_value: The difference's, corrected for the number of comparisons in its family.
    """

    method: str
    rival: str
    points: tuple[Point, ...]
    difference: Difference | None
    seeds: tuple[int, ...]
    parameter_ratio: float | None
    p_value: float | None = None

    @property
    def verdict(self) -> str | None:
        """`better`, `worse` or why neither can be said; None where there is no difference."""
        return None if self.difference is None else self.difference.verdict(self.p_value)


def compare_pairs(
    results: Results, pairs: Iterable[tuple[str, str]], scopes: Sequence[Sequence[Point]]
) -> tuple[PairedResult, ...]:
    """Every pair in every scope at which the comparison asks for both, with corrected p-values.

    Args:
        results: The numbers.
        pairs: (method, rival) labels.
        scopes: Points, or groups of points over which the methods are averaged.

    Raises:
        ValueError: The two were not tested on the same samples in the same order.
    """
    pairs = list(pairs)
    return _corrected(
        [
            compare_pair(results, *pair, scope)
            for scope in scopes
            for pair in pairs
            if set(pair) <= set(results.methods_at(scope))
        ]
    )


def compare_best(results: Results) -> tuple[PairedResult, ...]:
    """The method with the highest score of every scope against that with the second highest, with corrected p-values.

    That the two are chosen by their scores makes false marks no more frequent: among several methods of equal quality
    the best two tend to lie closer together than two that were named beforehand.
    """
    found = []
    for scope in results.scopes:
        scores = {method: score for method in results.methods if (score := results.score(method, scope)) is not None}
        ranked = sorted(scores, key=lambda method: -scores[method].mean)
        if len(ranked) > 1:
            found.append(compare_pair(results, ranked[0], ranked[1], scope))
    return _corrected(found)


def best_methods(pairs: Iterable[PairedResult]) -> Mapping[tuple[Point, ...], str]:
    """Scope -> the method that is significantly the best there, from what `compare_best` gives."""
    return {pair.points: pair.method for pair in pairs if pair.verdict == "better"}


def compare_pair(results: Results, method: str, rival: str, points: Sequence[Point]) -> PairedResult:
    """Paired difference of `method` and `rival` over the seeds that both have, averaged over points; not corrected.

    There is none where one of them lacks a point or a test set, or where a score is no accuracy and has no predictions.

    Raises:
        ValueError: The two were not tested on the same samples in the same order.
    """
    cells = [(results.cell(method, point), results.cell(rival, point)) for point in points]
    nothing = PairedResult(method, rival, tuple(points), None, (), None)
    if any(cell is None for both in cells for cell in both):
        return nothing
    seeds = sorted(set.intersection(*(set(cell.records) for both in cells for cell in both)))
    sets = [results.test_sets(point) for point in points]
    if not seeds or any(
        set(names) != set(cell.correct) for names, both in zip(sets, cells, strict=True) for cell in both
    ):
        return nothing
    correct = [_paired(*both, seeds, name) for names, both in zip(sets, cells, strict=True) for name in names]
    difference = paired_difference([a for a, _ in correct], [b for _, b in correct])
    a, b = cells[0]
    ratio = a.trainable / b.trainable if b.trainable else None
    return replace(nothing, difference=difference, seeds=tuple(seeds), parameter_ratio=ratio)


def _paired(a: Cell, b: Cell, seeds: Sequence[int], test_set: str) -> tuple[np.ndarray, np.ndarray]:
    """Whether each sample of a test set was classified correctly, (seeds, samples) for either cell."""
    import numpy as np

    labels = {cell.correct[test_set][seed][0] for cell in (a, b) for seed in seeds}
    if len(labels) > 1:
        names = " and ".join(label_of(cell.runs[0]["config"]) for cell in (a, b))
        raise ValueError(f"{names} were tested on different samples of {test_set}")
    return tuple(np.stack([cell.correct[test_set][seed][1] for seed in seeds]) for cell in (a, b))


def _corrected(pairs: Sequence[PairedResult]) -> tuple[PairedResult, ...]:
    """The pairs with their p-values corrected: those at points and those on averages are a family each."""
    corrected = list(pairs)
    for is_average in (False, True):
        family = [index for index, pair in enumerate(pairs) if (len(pair.points) > 1) == is_average]
        found = [pairs[index].difference for index in family]
        p_values = holm([None if difference is None else difference.p_value for difference in found])
        for index, p_value in zip(family, p_values, strict=True):
            corrected[index] = replace(pairs[index], p_value=p_value)
    return tuple(corrected)
