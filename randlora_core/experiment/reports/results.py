"""A comparison's numbers, computed from records: what the tables and figures draw.

A cell is one method at one point of the experiment's axes, over seeds. What is not in the records is missing, and stays
missing: it is never 0 and never averaged over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.planning import PlannedRun
from randlora_core.experiment.rates import LearningRate
from randlora_core.experiment.records.predictions import decode_predictions
from randlora_core.experiment.records.reading import Record, is_finished, machine_of, test_scores, with_quantization
from randlora_core.experiment.reports.statistics import Summary, summarize

if TYPE_CHECKING:
    import numpy as np

Point = tuple[Any, ...]

DATA_AXES = ("shots", "fraction")
"""Axes that say how many of the training images a run takes; where both are None it takes all of them."""

WHOLE = "100 %"


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

    @cached_property
    def correct(self) -> dict[str, dict[int, tuple[str, np.ndarray]]]:
        """Test set -> seed -> a digest of the true classes, and whether each sample was classified correctly."""
        found: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
        for test_set in self.predicted_sets:
            for record in self.runs:
                predicted, labels = decode_predictions(record["scores"]["test"][test_set]["predictions"])
                digest = hashlib.sha256(labels.tobytes()).hexdigest()
                found.setdefault(test_set, {})[record["run_id"]] = digest, predicted == labels
        runs = {seed: record["run_id"] for seed, record in self.records.items()}
        return {name: {seed: found[name][run] for seed, run in runs.items()} for name in found}

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

    @cached_property
    def machine(self) -> str | None:
        """The machine and the counter of memory of its runs; None where they were done on several."""
        machines = {machine_of(record) for record in self.runs}
        return machines.pop() if len(machines) == 1 else None

    @property
    def train_seconds(self) -> float | None:
        """Median training time; None where nothing is trained, or on several machines."""
        if not self.trainable or self.machine is None:
            return None
        return median(record["time"]["train_seconds"] for record in self.runs)

    @property
    def peak_bytes(self) -> int | None:
        """Largest peak memory; None where it was not measured, or on several machines."""
        peaks = [record["memory"]["peak_bytes"] for record in self.runs]
        return None if None in peaks or self.machine is None else max(peaks)


@dataclass(frozen=True)
class CostGroup:
    """Cells whose seconds and bytes compare: of one backbone, on one machine, by one counter of memory.

    Attributes:
        backbone: The backbone; None where the experiment has no axis of it.
        machine: What `Cell.machine` is; None where nothing was measured.
        points: The points over which costs are averaged.
        methods: What was measured on the machine at one of the points, and what was measured nowhere at them.
    """

    backbone: str | None
    machine: str | None
    points: tuple[Point, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """Methods x points of one experiment.

    Attributes:
        name: The comparison's name.
        experiment: Whose runs they are.
        methods: Labels in the order of the rows.
        points: Points on the experiment's axes in the order of the columns.
        cells: (method, point) -> cell; absent where there is no tested record.
        expected: (method, point) -> the different runs that the comparison asks for, by the hashes of their settings. A
            run that stands in several cells, such as zero-shot at all data sizes, is in each of them.
        rates: (method, point) -> the learning rate of its runs, with the grid that it was chosen from.
        families: Label -> the method's name without its rank: "lora" for LoRA-4 and LoRA-16, "lora 4bit" for those on
            a quantised base.
    """

    name: str
    experiment: Experiment
    methods: tuple[str, ...]
    points: tuple[Point, ...]
    cells: Mapping[tuple[str, Point], Cell]
    expected: Mapping[tuple[str, Point], frozenset[str]]
    rates: Mapping[tuple[str, Point], LearningRate]
    families: Mapping[str, str]

    def cell(self, method: str, point: Point) -> Cell | None:
        """The cell, or None where it is missing."""
        return self.cells.get((method, point))

    def methods_at(self, points: Iterable[Point]) -> tuple[str, ...]:
        """The methods of which the comparison asks for a run at one of the points, in the order of the rows."""
        asked = {method for point in points for method in self._asked.get(point, ())}
        return tuple(method for method in self.methods if method in asked)

    @cached_property
    def _asked(self) -> dict[Point, set[str]]:
        found: dict[Point, set[str]] = {}
        for method, point in self.expected:
            found.setdefault(point, set()).add(method)
        return found

    @cached_property
    def settings(self) -> tuple[tuple[Point, ...], ...]:
        """The points that differ on the first axis alone, the data sets of one setting, over which tables average."""
        found: dict[Point, list[Point]] = {}
        for point in self.points:
            found.setdefault(point[1:], []).append(point)
        return tuple(tuple(points) for points in found.values())

    @cached_property
    def scopes(self) -> tuple[tuple[Point, ...], ...]:
        """What scores are given for: every point alone, and the points of every setting that has several together."""
        return (*((point,) for point in self.points), *(points for points in self.settings if len(points) > 1))

    def title(self, point: Point) -> str:
        """A point in a few words: its values on the axes on which the points differ, or on the first one."""
        return self._describe(point, self._varied or [0]) or self.experiment.describe(point)

    def setting_title(self, points: Sequence[Point]) -> str:
        """A setting in a few words: its values on all axes but the first; "" where there is only one setting."""
        return self._describe(points[0], [index for index in self._varied if index > 0])

    def scope_title(self, points: Sequence[Point]) -> str:
        """A point, or the average over the points of a setting, in a few words."""
        if len(points) == 1:
            return self.title(points[0])
        return ", ".join(filter(None, (f"average of {len(points)}", self.setting_title(points))))

    def value(self, point: Point, axis: str) -> Any:
        """A point's value on an axis; None where the experiment has no such axis."""
        return next((at for one, at in zip(self.experiment.axes, point, strict=True) if one.key == axis), None)

    def amount(self, point: Point) -> tuple[int | None, float | None] | None:
        """A point's training images as (shots, fraction), (None, 1.0) for all; None where no axis tells them."""
        if not {axis.key for axis in self.experiment.axes} & set(DATA_AXES):
            return None
        shots, fraction = (self.value(point, axis) for axis in DATA_AXES)
        return shots, 1.0 if shots is None and fraction is None else fraction

    def describe_amount(self, amount: tuple[int | None, float | None]) -> str:
        """What `amount` gives in a few words: "4 shots", "50 %"."""
        if amount == (None, 1.0):
            return WHOLE
        axes = {axis.key: axis for axis in self.experiment.axes}
        parts = [axes[key].describe(value) for key, value in zip(DATA_AXES, amount, strict=True) if value is not None]
        return ", ".join(parts)

    @cached_property
    def _varied(self) -> list[int]:
        """The axes, by their numbers, on which the points differ."""
        return [index for index, values in enumerate(zip(*self.points, strict=True)) if len(set(values)) > 1]

    def _describe(self, point: Point, axes: Sequence[int]) -> str:
        """A point's values on some axes in a few words; all images are `WHOLE`, once, where other points have fewer."""
        whole, parts = self.amount(point) == (None, 1.0), []
        for index in axes:
            axis = self.experiment.axes[index]
            parts.append(WHOLE if whole and axis.key in DATA_AXES else axis.describe(point[index]))
        return ", ".join(part for part in dict.fromkeys(parts) if part)

    def test_sets(self, point: Point) -> tuple[str, ...]:
        """The test sets of a point's records, in their order."""
        cells = [cell for method in self.methods if (cell := self.cell(method, point)) is not None]
        return tuple(dict.fromkeys(name for cell in cells for record in cell.runs for name in test_scores(record)))

    def score(self, method: str, points: Sequence[Point]) -> Summary | None:
        """The score averaged over points, over seeds; None unless every point has all test sets, at the same seeds."""
        return self.average(method, points, lambda record: record["scores"]["mean"])

    def machines(self, points: Iterable[Point]) -> tuple[str, ...]:
        """The machines, with their counters of memory, that the points were measured on, in the order of the rows."""
        points = list(points)
        found = dict.fromkeys(machine for method in self.methods for machine in self._machines_of(method, points))
        return tuple(machine for machine in found if machine is not None)

    def _machines_of(self, method: str, points: Iterable[Point]) -> list[str | None]:
        """The different machines of a method's cells."""
        cells = (self.cell(method, point) for point in points)
        return list(dict.fromkeys(cell.machine for cell in cells if cell is not None))

    @cached_property
    def cost_groups(self) -> tuple[CostGroup, ...]:
        """What time and memory are averaged over: the points of the same machines, once for each of these."""
        groups: dict[tuple[str | None, frozenset[str], str | None], list[Point]] = {}
        for point in self.points:
            machines = self.machines([point])
            for machine in machines or (None,):
                groups.setdefault((self.value(point, "backbone"), frozenset(machines), machine), []).append(point)
        found = []
        for (backbone, _, machine), points in groups.items():
            ran = {method: self._machines_of(method, points) for method in self.methods}
            methods = (method for method in self.methods if machine in ran[method] or ran[method] in ([], [None]))
            found.append(CostGroup(backbone, machine, tuple(points), tuple(methods)))
        return tuple(found)

    def train_seconds(self, method: str, points: Sequence[Point]) -> Summary | None:
        """Training time averaged over points, over seeds; None where nothing is trained, or as `peak_bytes`."""
        trains = any(cell.trainable for point in points if (cell := self.cell(method, point)) is not None)
        return self._cost(method, points, lambda record: record["time"]["train_seconds"]) if trains else None

    def peak_bytes(self, method: str, points: Sequence[Point]) -> Summary | None:
        """Peak memory averaged over points, over seeds; None where not measured, on several machines, or as `score`."""
        return self._cost(method, points, lambda record: record["memory"]["peak_bytes"])

    def _cost(self, method: str, points: Sequence[Point], value: Callable[[Record], float | None]) -> Summary | None:
        machines = self._machines_of(method, points)
        return self.average(method, points, value) if len(machines) == 1 and None not in machines else None

    def average(self, method: str, points: Sequence[Point], value: Callable[[Record], float | None]) -> Summary | None:
        """A number of the records averaged over points, over seeds; never over fewer points or different seeds."""
        cells = [self.cell(method, point) for point in points]
        if None in cells or len({tuple(sorted(cell.records)) for cell in cells}) != 1:
            return None
        seeds = sorted(cells[0].records) if any(len(cell.runs) > 1 for cell in cells) else sorted(cells[0].records)[:1]
        values = [[value(cell.records[seed]) for cell in cells] for seed in seeds]
        return None if any(None in row for row in values) else summarize([sum(row) / len(row) for row in values])

    def records(self) -> list[Record]:
        """All records, each once."""
        return list({record["run_id"]: record for cell in self.cells.values() for record in cell.runs}.values())

    @property
    def num_expected(self) -> int:
        """Number of runs that the comparison asks for, each once, as a dry run lists them."""
        return len(set().union(*self.expected.values()))

    @property
    def num_missing(self) -> int:
        """Number of runs that the comparison asks for and that are not there, each once."""
        return self.num_expected - len(self.records())


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
        {key: frozenset(settings) for key, settings in expected.items()},
        {(entry.label, entry.point): entry.learning_rate for entry in planned},
        {entry.label: _family(entry) for entry in planned},
    )


def _family(entry: PlannedRun) -> str:
    """A run's method, of PEFT's tuners the tuner, and how its base is quantised."""
    adapter = entry.config.adapter
    return with_quantization(str(adapter.options.get("peft_type", adapter.method)).lower(), entry.recorded)


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
