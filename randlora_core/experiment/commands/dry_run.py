"""What a comparison would run, without running it: for people with an estimate, for programs as a table of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from randlora_core.experiment.commands.execution import earlier_records
from randlora_core.experiment.compose import groups_of
from randlora_core.experiment.planning import PlannedRun, distinct
from randlora_core.experiment.sweeps.estimates import RunEstimates
from randlora_core.experiment.sweeps.progress import format_seconds

COLUMNS = ("dataset", "backbone", "method", "rank", "shots", "fraction", "seed", "lr", "status")


def run_lines(planned: Iterable[PlannedRun]) -> list[str]:
    """A header and a line for every run, tab-separated, in the order of `planned`; no two are equal but for the status.

    `dataset` is the value on the experiment's first axis, `method` the file of `configs/adapter`, without rank.
    `shots` is empty where the training images are a fraction of all. Cells of a comparison that are one run, such as
    zero-shot at all data sizes, are one line; what uses no training images stands at fraction 1.0.
    """
    runs: dict[tuple[str, str], PlannedRun] = {}
    for entry in planned:
        runs.setdefault((entry.experiment.name, entry.identity.settings), entry)
    lines = ["\t".join("" if value is None else str(value) for value in _cells(entry)) for entry in runs.values()]
    return ["\t".join(COLUMNS), *lines]


def _cells(entry: PlannedRun) -> tuple[Any, ...]:
    config, rate = entry.recorded, entry.learning_rate.value
    shots, fraction = (config.get(key) if entry.config.is_trained else None for key in ("shots", "fraction"))
    return (
        entry.point[0],
        config["backbone"]["name"],
        _preset(entry),
        config["adapter"].get("rank"),
        shots,
        float(fraction or 1.0) if shots is None else None,
        entry.config.seed,
        None if rate is None else f"{rate:g}",
        entry.status,
    )


def _preset(entry: PlannedRun) -> str:
    """The file of `configs/adapter` that a run's overrides choose."""
    chosen = [text.partition("=")[2] for text in entry.overrides if text.startswith("adapter=")]
    return chosen[-1] if chosen else groups_of(entry.experiment.name, entry.experiment.configs)["adapter"]


def print_dry_run(planned: Sequence[PlannedRun], jobs: int) -> None:
    """Lists the runs, which are done, and what the rest is expected to take."""
    runs = distinct(planned)
    estimates = RunEstimates(earlier_records(runs))
    left = [entry for entry in runs if entry.finished is None]
    for entry in [*runs, *(entry for entry in planned if entry.missing is not None)]:
        if entry.status in ("done", "missing"):
            print(f"{entry.status:7} {entry.name}{f'  ({entry.missing})' if entry.missing else ''}")
            continue
        estimate, rate = estimates.estimate(entry), entry.learning_rate
        cost = f"{format_seconds(estimate.seconds)}  {_megabytes(estimate.peak_bytes)}"
        print(f"{entry.status:7} {entry.name}  {cost}" + ("" if rate.value is None else f"  rate {rate.describe()}"))
    known = [estimate for entry in left if (estimate := estimates.estimate(entry)).seconds is not None]
    seconds = sum(estimate.seconds for estimate in known) / jobs if known else None
    peak = max((estimate.peak_bytes for estimate in known if estimate.peak_bytes), default=None)
    total, missing = len(runs), sum(entry.missing is not None for entry in planned)
    lacking = f", {missing} missing" if missing else ""
    rest = f"{format_seconds(seconds)}, {_megabytes(peak)}"
    print(f"{total} runs, {total - len(left)} done{lacking}; the rest: {rest}")
    if len(known) < len(left):
        print(f"{len(left) - len(known)} of them are like no earlier run and are not in the estimate")


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f} MB"
