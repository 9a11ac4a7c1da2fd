"""A comparison's numbers, computed from records: what the tables and figures draw.

A cell is one method at one point of the experiment's axes, over seeds. What is not in the records is missing, and stays
missing: it is never 0 and never averaged over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.planning import PlannedRun
from randlora_core.experiment.records.predictions import decode_predictions
from randlora_core.experiment.records.reading import Record, is_finished, test_scores
from randlora_core.experiment.reports.statistics import Difference, Summary, paired_difference, summarize

if TYPE_CHECKING:
    import numpy as np

Point = tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One method at one point.

    Attributes:
        records: Its tested records by seed, at least one. A run that does not depend on the seed stands at every seed.
    """

    records: Mapping[int, Record]

    @cached_property
    def runs(self) -> list[Record]:
        """The records, each once, in the order of the seeds."""
        return list({self.records[seed]["run_id"]: self.records[seed] for seed in sorted(self.records)}.values())

    @property
    def test_sets(self) -> tuple[str, ...]:
        """The test sets that every record has."""
        shared = set.intersection(*(set(test_scores(record)) for record in self.runs))
        return tuple(name for name in test_scores(self.runs[0]) if name in shared)

    @property
    def predicted_sets(self) -> tuple[str, ...]:
        """The test sets of which every record has the predictions."""
        tests = [record["scores"]["test"] for record in self.runs]
        return tuple(name for name in self.test_sets if all(test[name]["predictions"] for test in tests))

    def score(self, test_set: str) -> Summary | None:
        """The score on one test set over the runs; None where a run lacks it."""
        values = [test_scores(record).get(test_set) for record in self.runs]
        return None if None in values else summarize(values)

    @property
    def mean(self) -> Summary | None:
        """The mean over the test sets, over the runs; None where a run lacks a set."""
        values = [record["scores"]["mean"] for record in self.runs]
        return None if None in values else summarize(values)

    @property
    def trainable(self) -> int:
        """Trainable parameters."""
        return self.runs[0]["parameters"]["trainable"]

    @property
    def learning_rate(self) -> Mapping[str, Any]:
        """The record's section on the learning rate; its value is None where the training loop did not run."""
        return self.runs[0]["learning_rate"]

    @property
    def train_seconds(self) -> float | None:
        """Median training time; None where nothing is trained."""
        return median(record["time"]["train_seconds"] for record in self.runs) if self.trainable else None

    @property
    def peak_bytes(self) -> int | None:
        """Largest peak memory; None where it was not measured."""
        peaks = [record["memory"]["peak_bytes"] for record in self.runs]
        return None if None in peaks else max(peaks)


@dataclass(frozen=True)
class PairedResult:
    """A paired comparison of two methods at one point, in score, `method` minus `rival`.

    Attributes:
        method: Label of the method.
        rival: Label of what it is compared with.
        point: Where.
        difference: Observed difference and its intervals; None where the records of one are missing.
        seeds: Seeds that both have.
        parameter_ratio: Trainable parameters of the method over the rival's; None where one is missing or trains none.
    """

    method: str
    rival: str
    point: Point
    difference: Difference | None
    seeds: tuple[int, ...]
    parameter_ratio: float | None


@dataclass(frozen=True)
class Results:
    """Methods x points of one experiment.

    Attributes:
        name: The comparison's name.
        experiment: Whose runs they are.
        methods: Labels in the order of the rows.
        points: Points on the experiment's axes in the order of the columns.
        cells: (method, point) -> cell; absent where there is no tested record.
        expected: (method, point) -> number of different runs that the comparison asks for.
    """

    name: str
    experiment: Experiment
    methods: tuple[str, ...]
    points: tuple[Point, ...]
    cells: Mapping[tuple[str, Point], Cell]
    expected: Mapping[tuple[str, Point], int]

    def cell(self, method: str, point: Point) -> Cell | None:
        """The cell, or None where it is missing."""
        return self.cells.get((method, point))

    def title(self, point: Point) -> str:
        """A point in a few words: its values on the axes on which the points differ, or on the first one."""
        varied = [len({other[index] for other in self.points}) > 1 for index in range(len(point))]
        shown = [index for index in range(len(point)) if varied[index]] or [0]
        parts = [self.experiment.axes[index].describe(point[index]) for index in shown]
        return ", ".join(part for part in parts if part) or self.experiment.describe(point)

    def test_sets(self, point: Point) -> tuple[str, ...]:
        """The test sets of a point's records, in their order."""
        cells = [cell for method in self.methods if (cell := self.cell(method, point)) is not None]
        return tuple(dict.fromkeys(name for cell in cells for record in cell.runs for name in test_scores(record)))

    def average(self, method: str) -> Summary | None:
        """Mean over the points, summarised over seeds; None unless every point has all test sets at the same seeds."""
        cells = [self.cell(method, point) for point in self.points]
        if any(cell is None or cell.mean is None for cell in cells):
            return None
        if len({tuple(sorted(cell.records)) for cell in cells}) != 1:
            return None
        seeds = sorted(cells[0].records) if any(len(cell.runs) > 1 for cell in cells) else sorted(cells[0].records)[:1]
        return summarize([sum(cell.records[seed]["scores"]["mean"] for cell in cells) / len(cells) for seed in seeds])

    def records(self) -> list[Record]:
        """All records, each once."""
        return list({record["run_id"]: record for cell in self.cells.values() for record in cell.runs}.values())

    @property
    def num_missing(self) -> int:
        """Number of runs that the comparison asks for and that are not there."""
        return sum(
            count - (len(cell.runs) if (cell := self.cells.get(key)) is not None else 0)
            for key, count in self.expected.items()
        )


def collect_results(name: str, planned: Sequence[PlannedRun], find: Callable[[PlannedRun], Record | None]) -> Results:
    """Sorts the records of planned runs of one experiment into cells.

    Args:
        name: The comparison's name.
        planned: All runs that the comparison asks for.
        find: The record of a run, or None; one that is not finished or was not tested makes no cell.

    Raises:
        ValueError: Two different runs claim one method, point and seed.
    """
    check_distinct(planned)
    cells: dict[tuple[str, Point], dict[int, Record]] = {}
    expected: dict[tuple[str, Point], set[str]] = {}
    for entry in planned:
        key = entry.label, entry.point
        expected.setdefault(key, set()).add(entry.identity.settings)
        record = find(entry)
        if is_finished(record) and record["scores"]["test"]:
            cells.setdefault(key, {})[entry.config.seed] = record
    return Results(
        name,
        planned[0].experiment,
        tuple(dict.fromkeys(entry.label for entry in planned)),
        tuple(dict.fromkeys(entry.point for entry in planned)),
        {key: Cell(by_seed) for key, by_seed in cells.items()},
        {key: len(settings) for key, settings in expected.items()},
    )


def check_distinct(planned: Iterable[PlannedRun]) -> None:
    """Checks that method, point and seed tell the runs of a comparison apart.

    Raises:
        ValueError: Two different runs claim one method, point and seed.
    """
    known: dict[tuple, str] = {}
    for entry in planned:
        key = entry.experiment.name, entry.label, entry.point, entry.config.seed
        if known.setdefault(key, entry.identity.settings) != entry.identity.settings:
            raise ValueError(f"two different runs are both {entry.name}; accepted: one run per method, data and seed")


def find_by_settings(records: Iterable[Record]) -> Callable[[PlannedRun], Record | None]:
    """Finds committed records by their settings alone, since neither data nor weights need be here."""
    known = {record["identity"]["settings"]: record for record in records if is_finished(record)}
    return lambda entry: known.get(entry.identity.settings)


def compare_pair(results: Results, method: str, rival: str, point: Point) -> PairedResult:
    """Paired difference of `method` and `rival` at one point over the seeds that both have.

    There is none where one of them lacks a test set, or where a score is no accuracy and has no predictions.

    Raises:
        ValueError: The two were not tested on the same samples in the same order.
    """
    a, b = results.cell(method, point), results.cell(rival, point)
    seeds = tuple(sorted(a.records.keys() & b.records.keys())) if a is not None and b is not None else ()
    sets = results.test_sets(point)
    if not seeds or not all(set(sets) == set(cell.predicted_sets) for cell in (a, b)):
        return PairedResult(method, rival, point, None, (), None)
    correct = [_paired_correctness(a, b, seeds, name) for name in sets]
    difference = paired_difference([pair[0] for pair in correct], [pair[1] for pair in correct])
    ratio = a.trainable / b.trainable if b.trainable else None
    return PairedResult(method, rival, point, difference, seeds, ratio)


def _paired_correctness(a: Cell, b: Cell, seeds: Sequence[int], test_set: str) -> tuple[np.ndarray, np.ndarray]:
    """Whether each sample of a test set was classified correctly, (seeds, samples) for either cell."""
    import numpy as np

    correct: tuple[list, list] = ([], [])
    reference = None
    for seed in seeds:
        for cell, rows in zip((a, b), correct, strict=True):
            predicted, labels = decode_predictions(cell.records[seed]["scores"]["test"][test_set]["predictions"])
            reference = labels if reference is None else reference
            if not np.array_equal(labels, reference):
                names = " and ".join(one.records[seed]["config"]["adapter"]["label"] for one in (a, b))
                raise ValueError(f"{names} were tested on different samples of {test_set}")
            rows.append(predicted == labels)
    return np.stack(correct[0]), np.stack(correct[1])
