"""Seconds and memory that a run will take, judged from records of runs like it, or else from its work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch

from randlora_core.experiment.interface import Work
from randlora_core.experiment.planning import PlannedRun
from randlora_core.experiment.records.reading import Record, backbone_of, is_finished, label_of
from randlora_core.experiment.sweeps.flops import measured_rate, work_bytes, work_seconds


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take; None where nothing tells.

    Attributes:
        seconds: Median total seconds of the runs like it, or those of its work.
        peak_bytes: Largest peak memory of them, or what its work needs.
        source: What it is made from.
    """

    seconds: float | None
    peak_bytes: int | None
    source: Literal["records", "FLOPs"] | None = None


class RunEstimates:
    """Looks up runs like a given one, the most alike first.

    These are runs of the same model, method and length on the same data, then on any data; then of any length, by their
    examples per second; then of other methods. A run of the same method comes first because methods differ in cost by
    more than seeds, learning rates and the number of examples do once steps and batch size are fixed.

    Args:
        records: Records to judge from; those that are not finished tell nothing.
        hardware: The record's section on this machine; given, records of another processor or GPU are left out.
    """

    def __init__(self, records: Iterable[Record] = (), hardware: Mapping[str, Any] | None = None):
        self._groups: dict[tuple, list[Record]] = {}
        for record in records:
            if hardware is None or _machine(record["provenance"]["hardware"]) == _machine(hardware):
                self.add(record)

    def add(self, record: Record) -> None:
        """Takes a record into account; one that is not finished tells nothing and is left out."""
        if is_finished(record):
            for key in _likeness(record["experiment"], record["identity"]["data"], record["config"]):
                self._groups.setdefault(key, []).append(record)

    def estimate(self, planned: PlannedRun) -> Estimate:
        """The estimate for a planned run, from records."""
        for key in _likeness(planned.experiment.name, planned.identity.data, planned.recorded):
            if records := self._groups.get(key):
                seconds = _by_speed(planned, records) if key[0] == "speed" else _by_time(records)
                if seconds is not None:
                    peaks = [record["memory"]["peak_bytes"] for record in records if record["memory"]["peak_bytes"]]
                    return Estimate(seconds, max(peaks, default=None), "records")
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


def work_of(planned: PlannedRun) -> Work | None:
    """What a run has to compute, where its experiment can tell."""
    count = planned.experiment.count_work
    return None if count is None else count(planned.config)


def estimate_by_work(planned: PlannedRun, device: torch.device, threads: int) -> Estimate:
    """The estimate for a planned run from its work and a rate measured on `device` with so many threads."""
    work = work_of(planned)
    if work is None:
        return Estimate(None, None)
    rate = measured_rate(device, planned.config.training.precision, threads)
    return Estimate(work_seconds(work, planned.config, rate), work_bytes(work, planned.config), "FLOPs")


def _by_time(records: Sequence[Record]) -> float:
    return median(record["time"]["total_seconds"] for record in records)


def _by_speed(planned: PlannedRun, records: Sequence[Record]) -> float | None:
    """Seconds at the records' examples per second, and as long as theirs beside training; None without a number."""
    training, work = planned.config.training, work_of(planned) if planned.config.training.steps is None else None
    examples = training.steps * training.batch_size if training.steps else work.num_examples if work else None
    timed = [record["time"] for record in records if record["time"].get("examples_per_second")]
    if not timed or examples is None:
        return None
    beside = median(found["total_seconds"] - found["train_seconds"] for found in timed)
    return examples / median(found["examples_per_second"] for found in timed) + beside


def _machine(hardware: Mapping[str, Any]) -> str:
    return hardware.get("gpu") or hardware["cpu"]


def _likeness(experiment: str, data: str, config: Mapping[str, Any]) -> list[tuple]:
    """Keys of the groups a run belongs to, the most alike first."""
    training = config["training"]
    model = (experiment, backbone_of(config))
    length = (*model, *(training[key] for key in ("steps", "epochs", "batch_size")))
    label = label_of(config)
    alike = [("method", data, label, length), ("length", label, length)]
    if training["learning_rate"] is None:
        return alike  # what is not trained tells nothing of what is
    return [*alike, ("speed", label, model, training["precision"]), ("data", data, length)]
