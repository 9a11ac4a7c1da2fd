"""A comparison's numbers, computed from records: what the tables and figures draw.

A cell is one method on one dataset over seeds. What is not in the records is missing, and stays missing: it is never 0
and never averaged over.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from randlora_core.experiment.predictions import decode_predictions
from randlora_core.experiment.records import Record, dataset_of, is_finished, label_of, seed_of
from randlora_core.experiment.statistics import Difference, Summary, paired_difference, summarize

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Cell:
    """One method on one dataset.

    Attributes:
        records: Its finished records by seed, at least one.
    """

    records: Mapping[int, Record]

    @property
    def accuracy(self) -> Summary:
        """Test accuracy over the seeds, 0 to 1."""
        return summarize([self.accuracy_of(seed) for seed in sorted(self.records)])

    def accuracy_of(self, seed: int) -> float:
        """Test accuracy of one seed."""
        return self.records[seed]["result"]["test_accuracy"]

    @property
    def trainable(self) -> int:
        """Trainable parameters."""
        return self._any["parameters"]["trainable"]

    @property
    def learning_rate(self) -> float | None:
        """The learning rate; None where nothing is trained."""
        return self._any["learning_rate"]["value"] if self.trainable else None

    @property
    def learning_rate_source(self) -> str:
        """Where the learning rate comes from, as the record says."""
        return self._any["learning_rate"]["source"]

    @property
    def train_seconds(self) -> float | None:
        """Median training time over the seeds; None where nothing is trained."""
        return median(record["time"]["train_seconds"] for record in self.records.values()) if self.trainable else None

    @property
    def peak_bytes(self) -> int | None:
        """Largest peak memory over the seeds; None where it was not measured."""
        peaks = [record["memory"]["peak_bytes"] for record in self.records.values()]
        return None if None in peaks else max(peaks)

    @property
    def _any(self) -> Record:
        return self.records[min(self.records)]


@dataclass(frozen=True)
class Contest:
    """A paired comparison of two methods on one dataset, in accuracy, `method` minus `rival`.

    Attributes:
        method: Label of the method.
        rival: Label of what it is compared with.
        dataset: The dataset.
        difference: Observed difference and its intervals; None where the records of one are missing.
        seeds: Seeds that both have.
        parameter_ratio: Trainable parameters of the method over the rival's; None where one is missing or trains none.
    """

    method: str
    rival: str
    dataset: str
    difference: Difference | None
    seeds: tuple[int, ...]
    parameter_ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """Methods x datasets.

    Attributes:
        name: The comparison's name.
        methods: Labels in the order of the rows.
        datasets: Names in the order of the columns.
        cells: (method, dataset) -> cell; absent where there is no finished record.
        expected_seeds: (method, dataset) -> number of seeds that the comparison asks for, where known.
    """

    name: str
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    expected_seeds: Mapping[tuple[str, str], int]

    def cell(self, method: str, dataset: str) -> Cell | None:
        """The cell, or None where it is missing."""
        return self.cells.get((method, dataset))

    def average(self, method: str) -> Summary | None:
        """Mean over the datasets, summarised over seeds; None unless every dataset has the same seeds."""
        cells = [self.cell(method, dataset) for dataset in self.datasets]
        present = [cell for cell in cells if cell is not None]
        if len(present) < len(cells) or len({tuple(sorted(cell.records)) for cell in present}) != 1:
            return None
        seeds = sorted(present[0].records)
        return summarize([sum(cell.accuracy_of(seed) for cell in present) / len(present) for seed in seeds])

    def records(self) -> list[Record]:
        """All records in the comparison."""
        return [record for cell in self.cells.values() for record in cell.records.values()]


def compare_records(
    name: str,
    records: Iterable[Record],
    *,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    expected_seeds: Mapping[tuple[str, str], int] | None = None,
) -> Comparison:
    """Sorts records into cells.

    Args:
        name: The comparison's name.
        records: Records; those that are not finished or have no test score make no cell.
        methods: Labels in the order of the rows; others found in the records follow.
        datasets: Names in the order of the columns; others follow.
        expected_seeds: (method, dataset) -> number of seeds asked for.

    Raises:
        ValueError: Two different runs claim one method, dataset and seed.
    """
    cells: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        if not is_finished(record) or record["result"]["test_accuracy"] is None:
            continue
        config = record["config"]
        by_seed = cells.setdefault((label_of(config), dataset_of(config)), {})
        other = by_seed.setdefault(seed_of(config), record)
        if other["run_id"] != record["run_id"]:
            ids = f"{other['run_id']} and {record['run_id']}"
            raise ValueError(
                f"runs {ids} are both {label_of(config)} on {dataset_of(config)} with seed {seed_of(config)}; "
                "accepted: one run per method, dataset and seed"
            )
    found_methods, found_datasets = ([key[axis] for key in cells] for axis in (0, 1))
    return Comparison(
        name,
        tuple(dict.fromkeys([*methods, *found_methods])),
        tuple(dict.fromkeys([*datasets, *found_datasets])),
        {key: Cell(by_seed) for key, by_seed in cells.items()},
        dict(expected_seeds or {}),
    )


def contest(comparison: Comparison, method: str, rival: str, dataset: str) -> Contest:
    """Paired difference of `method` and `rival` on one dataset, over the seeds that both have.

    Raises:
        ValueError: The two were not tested on the same samples in the same order.
    """
    a, b = comparison.cell(method, dataset), comparison.cell(rival, dataset)
    seeds = tuple(sorted(a.records.keys() & b.records.keys())) if a is not None and b is not None else ()
    if not seeds:
        return Contest(method, rival, dataset, None, (), None)
    correct_method, correct_rival = _paired_correctness(a, b, seeds)
    ratio = a.trainable / b.trainable if b.trainable else None
    return Contest(method, rival, dataset, paired_difference(correct_method, correct_rival), seeds, ratio)


def _paired_correctness(a: Cell, b: Cell, seeds: Sequence[int]) -> "tuple[np.ndarray, np.ndarray]":
    """Whether each sample was classified correctly, (seeds, samples) for either cell."""
    import numpy as np

    correct: tuple[list, list] = ([], [])
    reference = None
    for seed in seeds:
        for cell, rows in zip((a, b), correct, strict=True):
            predicted, labels = decode_predictions(cell.records[seed]["predictions"])
            reference = labels if reference is None else reference
            if not np.array_equal(labels, reference):
                names = " and ".join(label_of(one.records[seed]["config"]) for one in (a, b))
                dataset = dataset_of(cell.records[seed]["config"])
                raise ValueError(f"{names} were tested on different samples of {dataset}")
            rows.append(predicted == labels)
    return np.stack(correct[0]), np.stack(correct[1])
