"""Seconds and memory that a run will take, judged from records of runs like it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from randlora_core.experiment.planning import PlannedRun
from randlora_core.experiment.records.reading import Record, backbone_of, is_finished, label_of


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take; None where no record is like it.

    Attributes:
        seconds: Median total seconds of the runs like it.
        peak_bytes: Largest peak memory of them.
    """

    seconds: float | None
    peak_bytes: int | None


class RunEstimates:
    """Looks up runs like a given one: same model, method and length on the same data, then on any; then other methods.

    A run of the same method comes first because methods differ in cost by more than seeds, learning rates and the
    number of examples do once steps and batch size are fixed.
    """

    def __init__(self, records: Iterable[Record] = ()):
        self._groups: dict[tuple, list[Record]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Takes a record into account; one that is not finished tells nothing and is left out."""
        if is_finished(record):
            for key in _likeness(record["experiment"], record["identity"]["data"], record["config"]):
                self._groups.setdefault(key, []).append(record)

    def estimate(self, planned: PlannedRun) -> Estimate:
        """The estimate for a planned run."""
        for key in _likeness(planned.experiment.name, planned.identity.data, planned.recorded):
            if records := self._groups.get(key):
                seconds = median(record["time"]["total_seconds"] for record in records)
                peaks = [record["memory"]["peak_bytes"] for record in records if record["memory"]["peak_bytes"]]
                return Estimate(seconds, max(peaks, default=None))
        return Estimate(None, None)

    def seconds_left(
        self, waiting: Sequence[PlannedRun], running: Sequence[tuple[PlannedRun, float]], jobs: int
    ) -> float | None:
        """Seconds until all are done, or None while a run among them is like no finished one.

        Args:
            waiting: The runs not started.
            running: (run, fraction done) of the runs under way.
            jobs: Runs at a time.
        """
        parts = [(entry, 1.0) for entry in waiting]
        parts += [(entry, 1.0 - fraction) for entry, fraction in running]
        seconds = [(self.estimate(entry).seconds, share) for entry, share in parts]
        if any(value is None for value, _ in seconds):
            return None
        return sum(value * share for value, share in seconds if value is not None) / jobs


def _likeness(experiment: str, data: str, config: Mapping[str, Any]) -> list[tuple]:
    """Keys of the groups a run belongs to, the most alike first."""
    training = config["training"]
    length = (experiment, backbone_of(config), *(training[key] for key in ("steps", "epochs", "batch_size")))
    label = label_of(config)
    alike = [("method", data, label, length), ("length", label, length)]
    trained = training["learning_rate"] is not None  # what is not trained tells nothing of what is
    return [*alike, ("data", data, length)] if trained else alike
