"""The comparison command: trains what is not trained yet, then prints and writes the table.

    python -m vision_language.compare                                the default comparison
    python -m vision_language.compare longer paths.data=/data        another one, with an override for every run
    python -m vision_language.compare --dry-run                      what would run, what is done, what it would cost
    python -m vision_language.compare --datasets digits --seeds 1    a part of it
    python -m vision_language.compare longer --from-records          the table of the committed records, no training

Exit code 0: every run is finished. 1: a run failed. 2: bad input. 130: interrupted.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from randlora_core.experiment.command import TRACEBACK_VARIABLE, one_line
from randlora_core.experiment.comparison import compare_records
from randlora_core.experiment.estimates import RunEstimates
from randlora_core.experiment.forkserver import start_server
from randlora_core.experiment.hardware import usable_cores
from randlora_core.experiment.ledger import read_records
from randlora_core.experiment.progress import format_seconds, sweep_progress
from randlora_core.experiment.records import Record, collect_records, dataset_of, label_of, seed_of
from randlora_core.experiment.report import Report, make_console, make_report, print_report, write_report
from randlora_core.experiment.sweep import Outcome, PlannedRun, plan_sweep, run_sweep
from vision_language.comparisons import PRELOAD, RECORDS_FOLDER, ComparisonPlan, identify, load_comparison, run, select


@dataclass(frozen=True)
class Command:
    """A parsed command line of the comparison or the tuning.

    Attributes:
        name: The comparison.
        overrides: `key=value` arguments, passed to every run.
        options: The remaining options by name.
    """

    name: str
    overrides: tuple[str, ...]
    options: argparse.Namespace


def base_parser(program: str, description: str) -> argparse.ArgumentParser:
    """The options that the comparison and the tuning share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        usage="%(prog)s [name] [options] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="a file of configs/comparison (default: default)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="these datasets instead of the comparison's")
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="only these rows, such as RandLoRA-6")
    parser.add_argument(
        "--jobs", type=int, default=default_jobs(), help="runs at a time (default: one per core up to 4; 1 with a GPU)"
    )
    return parser


def default_jobs() -> int:
    """Runs at a time: small models use separate cores better than one after the other uses all; a GPU is not shared."""
    import torch

    return 1 if torch.cuda.is_available() else min(4, usable_cores())


def parse_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Command:
    """Splits `key=value` arguments from options, wherever they stand; `name=x` is the comparison's name too."""
    pairs = [text for text in arguments if "=" in text and not text.startswith("-")]
    options = parser.parse_args([text for text in arguments if text not in pairs])
    names = [text.removeprefix("name=") for text in pairs if text.startswith("name=")]
    overrides = tuple(text for text in pairs if not text.startswith("name="))
    return Command([*names, options.name or "default"][0], overrides, options)


def guarded(work: Callable[[], int]) -> int:
    """Runs a command and turns bad input, a full disk and an interruption into one line and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, and the same command takes up the rest", file=sys.stderr)
        return 130


def execute(
    planned: Sequence[PlannedRun], run_function: Callable[..., Record], title: str, *, jobs: int
) -> list[Outcome]:
    """Runs what is not finished and shows how far it is."""
    done = sum(entry.is_done for entry in planned)
    print(f"{title}: {len(planned)} runs, {done} finished earlier", flush=True)
    with sweep_progress(title) as display:
        return run_sweep(planned, run_function, jobs=jobs, display=display, earlier=earlier_records(planned))


def print_failures(outcomes: Sequence[Outcome]) -> int:
    """One line per failed run on standard error; returns their number."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        print(f"failed: {outcome.run.name}: {outcome.error} ({outcome.run.path})", file=sys.stderr)
    return len(failed)


def earlier_records(planned: Sequence[PlannedRun]) -> list[Record]:
    """Records to estimate costs from: those in the results folder, or else the committed ones."""
    folders = {entry.path.parent for entry in planned if entry.path.parent.is_dir()}
    return read_records(*sorted(folders)) or committed_records()


def committed_records() -> list[Record]:
    """The experiment's committed records."""
    return read_records(RECORDS_FOLDER) if RECORDS_FOLDER.is_dir() else []


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = base_parser("vision_language.compare", __doc__ or "")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds instead of the comparison's")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with an estimate; train nothing")
    parser.add_argument("--from-records", action="store_true", help="tables from the committed records; train nothing")
    parser.add_argument("--save-records", action="store_true", help="also write the records to be committed")
    command = parse_command(parser, sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _compare(command))


def _compare(command: Command) -> int:
    options = command.options
    plan = load_comparison(command.name, overrides=command.overrides, datasets=options.datasets, seeds=options.seeds)
    if options.from_records:
        _show(committed_report(command.name, plan, options.methods))
        return 0
    start_server(PRELOAD)
    planned = select_methods(plan_sweep(plan.run_overrides(), identify), options.methods)
    if options.dry_run:
        print_dry_run(planned, options.jobs)
        return 0
    outcomes = execute(planned, run, f"comparison {command.name}", jobs=options.jobs)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    folder = planned[0].path.parent / command.name
    report = build_report(command.name, plan, records, expected=[entry.config for entry in planned])
    _show(report)
    print("written: " + ", ".join(str(path) for path in write_report(report, folder)))
    if options.save_records:
        path = RECORDS_FOLDER / f"{command.name}.jsonl"
        print(f"{collect_records(records, path)} records in {path}")
    return 1 if print_failures(outcomes) else 0


def select_methods(planned: Sequence[PlannedRun], labels: Sequence[str] | None) -> list[PlannedRun]:
    """The runs of the given methods; all of them for None.

    Raises:
        ValueError: A label is none of the runs'.
    """
    known = list(dict.fromkeys(label_of(entry.config) for entry in planned))
    chosen = select(known, labels, "method")
    return [entry for entry in planned if label_of(entry.config) in chosen]


def print_dry_run(planned: Sequence[PlannedRun], jobs: int) -> None:
    """Lists the runs, which are done, and what the rest is expected to take."""
    estimates = RunEstimates(earlier_records(planned))
    left = [entry for entry in planned if not entry.is_done]
    for entry in planned:
        if entry.is_done:
            print(f"done    {entry.name}")
            continue
        estimate = estimates.estimate(entry.config)
        state = "retry " if entry.record is not None else "to do "
        print(f"{state}  {entry.name}  {format_seconds(estimate.seconds)}  {_megabytes(estimate.peak_bytes)}")
    known = [estimate for entry in left if (estimate := estimates.estimate(entry.config)).seconds is not None]
    seconds = sum(estimate.seconds for estimate in known) / jobs if known else None
    peak = max((estimate.peak_bytes for estimate in known if estimate.peak_bytes), default=None)
    print(
        f"{len(planned)} runs, {len(planned) - len(left)} done; the rest: {format_seconds(seconds)}, {_megabytes(peak)}"
    )
    if len(known) < len(left):
        print(f"{len(left) - len(known)} of them are like no earlier run and are not in the estimate")


def committed_report(name: str, plan: ComparisonPlan, labels: Sequence[str] | None = None) -> Report:
    """The report of a comparison's committed records.

    Raises:
        ValueError: A label is none of the records'.
        FileNotFoundError: No records of this comparison are committed.
    """
    records = read_records(RECORDS_FOLDER / f"{name}.jsonl")
    chosen = select(list(dict.fromkeys(label_of(record["config"]) for record in records)), labels, "method")
    kept = [
        record
        for record in records
        if label_of(record["config"]) in chosen and dataset_of(record["config"]) in plan.datasets
    ]
    return build_report(name, plan, kept, expected=[record["config"] for record in kept])


def build_report(name: str, plan: ComparisonPlan, records: Sequence[Record], *, expected: Sequence[Any]) -> Report:
    """The report on `records`; `expected` are the configurations of all runs that the comparison asks for."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for config in expected:
        seeds.setdefault((label_of(config), dataset_of(config)), set()).add(seed_of(config))
    comparison = compare_records(
        name,
        records,
        methods=list(dict.fromkeys(method for method, _ in seeds)),
        datasets=plan.datasets,
        expected_seeds={key: len(values) for key, values in seeds.items()},
    )
    pairs = [(method, rival) for method, rival in plan.pairs if {method, rival} <= set(comparison.methods)]
    return make_report(comparison, pairs)


def _show(report: Report) -> None:
    print_report(report, make_console())


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f} MB"


def _interrupt(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
