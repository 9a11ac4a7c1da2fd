"""What a comparison would run, without running it: for people with an estimate, for programs as a table of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from randlora_core.experiment.commands.execution import earlier_records
from randlora_core.experiment.compose import groups_of
from randlora_core.experiment.loop.hardware import pick_device
from randlora_core.experiment.planning import PlannedRun, each_once
from randlora_core.experiment.records.provenance import hardware
from randlora_core.experiment.sweeps.estimates import Estimate, RunEstimates, estimate_by_work
from randlora_core.experiment.sweeps.flops import measured_rate
from randlora_core.experiment.sweeps.progress import format_seconds
from randlora_core.machine import usable_cores

COLUMNS = ("dataset", "backbone", "method", "rank", "shots", "fraction", "seed", "lr", "status")


def run_lines(planned: Iterable[PlannedRun]) -> list[str]:
    """A header and a line for every run, tab-separated, in the order of `planned`; no two are equal but for the status.

    `dataset` is the value on the experiment's first axis, `method` the file of `configs/adapter`, without rank.
    `shots` is empty where the training images are a fraction of all. Cells of a comparison that are one run, such as
    zero-shot at all data sizes, are one line; what uses no training images stands at fraction 1.0. Runs that differ in
    none of the columns, such as two objectives, have their label in tables behind the method.
    """
    runs = [(entry, _cells(entry, _preset(entry))) for entry in each_once(planned)]
    times = Counter(cells[:-1] for _, cells in runs)
    named = [
        cells if times[cells[:-1]] == 1 else _cells(entry, f"{_preset(entry)} ({entry.label})") for entry, cells in runs
    ]
    return ["\t".join("" if value is None else str(value) for value in cells) for cells in (COLUMNS, *named)]


def _cells(entry: PlannedRun, method: str) -> tuple[Any, ...]:
    config, rate = entry.recorded, entry.learning_rate.value
    shots, fraction = (config.get(key) if entry.config.is_trained else None for key in ("shots", "fraction"))
    return (
        entry.point[0],
        config["backbone"]["name"],
        method,
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
    """Lists the runs, which are done, and what the rest is expected to take, those that cannot run here included."""
    runs = each_once(planned)
    left = [entry for entry in runs if entry.status != "done"]
    estimates = dict(zip(map(id, left), _estimates(left, jobs), strict=True))
    for entry in runs:
        print(f"{entry.status:7} {entry.name}{_detail(entry, estimates.get(id(entry)))}")
    for reason, count in Counter(entry.missing for entry in left if entry.missing is not None).items():
        print(f"{count} missing: {reason}")
    missing = sum(entry.missing is not None for entry in left)
    lacking = f", {missing} missing" if missing else ""
    found = [estimate for estimate in estimates.values() if estimate.seconds is not None]
    each = [estimate.seconds for estimate in found]
    seconds = max(sum(each) / jobs, *each) if each else None
    peak = max((estimate.peak_bytes for estimate in found if estimate.peak_bytes), default=None)
    rest = f"{_cost(Estimate(seconds, peak), ', ')}, {jobs} at a time"
    print(f"{len(runs)} runs, {len(runs) - len(left)} done{lacking}; the rest: {rest}")
    sources = Counter(estimate.source for estimate in estimates.values())
    if sources["records"]:
        print(f"{sources['records']} estimated from records of the same model on the same processor or GPU")
    if sources["FLOPs"]:
        print(f"{sources['FLOPs']} estimated from FLOPs and a measured rate: {_rates(left, jobs)}")
        print("(a lower bound of the time, and the memory of tensors alone, where records have that of the process)")
    if sources[None]:
        print(f"{sources[None]} of them are like no earlier run and are not in the estimate")


def _estimates(runs: Sequence[PlannedRun], jobs: int) -> list[Estimate]:
    """From records where there are some of runs like it, else from the work."""
    known = RunEstimates(earlier_records(runs), hardware())
    found = [known.estimate(entry) for entry in runs]
    return [
        estimate if estimate.source else estimate_by_work(entry, pick_device(entry.config.device), _threads(jobs))
        for entry, estimate in zip(runs, found, strict=True)
    ]


def _rates(runs: Sequence[PlannedRun], jobs: int) -> str:
    """The measured rates, by device and number format."""
    kinds = dict.fromkeys((pick_device(entry.config.device), entry.config.training.precision) for entry in runs)
    rates = {(device.type, precision): measured_rate(device, precision, _threads(jobs)) for device, precision in kinds}
    return ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name} on {device}" for (device, name), rate in rates.items())


def _threads(jobs: int) -> int:
    """Threads of a run beside so many others."""
    return max(1, usable_cores() // jobs)


def _detail(entry: PlannedRun, estimate: Estimate | None) -> str:
    """What a line says of a run that is not done, beside its name."""
    if estimate is None:
        return ""
    rate = entry.learning_rate
    return f"  {_cost(estimate)}" + ("" if rate.value is None else f"  rate {rate.describe()}")


def _cost(estimate: Estimate, separator: str = "  ") -> str:
    peak = "-" if estimate.peak_bytes is None else f"{estimate.peak_bytes / 1e6:,.0f} MB"
    return f"{format_seconds(estimate.seconds)}{separator}{peak}"
