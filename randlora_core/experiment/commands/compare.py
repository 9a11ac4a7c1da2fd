"""The comparison command: trains what is not trained yet, then prints and writes the tables.

    python -m vision_language.compare                                the default comparison
    python -m vision_language.compare figure3 paths.data=/data       another one, with an override for every run
    python -m vision_language.compare figure3 scale=mini             at another scale: paper, mini or demo
    python -m vision_language.compare --dry-run                      what would run, what is done, what it would cost
    python -m vision_language.compare --dry-run --format=tsv         every run and its status, for programs
    python -m vision_language.compare --datasets digits --seeds 1    a part of it
    python -m vision_language.compare --from-records                 the tables of the committed records, no training
    python -m vision_language.compare --from-records --output DIR    also as Markdown, LaTeX, CSV and PNG
    python -m vision_language.compare --adopt-records                take over committed records of exactly these runs

Exit code 0: every run is finished. 1: a run failed or its inputs are missing. 2: bad input. 130: interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from randlora_core.command_line import FAILED, run_command
from randlora_core.experiment.commands.dry_run import print_dry_run, run_lines
from randlora_core.experiment.commands.execution import (
    adopt_records,
    committed_records,
    execute_runs,
    fetch_inputs,
    print_failures,
    save_finished,
)
from randlora_core.experiment.commands.options import (
    add_execution,
    make_parser,
    read_execution,
    split_arguments,
)
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.interface import Experiment, find_experiment
from randlora_core.experiment.planning import PlannedRun, plan_runs, results_folder
from randlora_core.experiment.records.reading import Record
from randlora_core.experiment.reports.report import Report, make_console, make_report, print_report, write_report
from randlora_core.experiment.reports.results import check_distinct, collect_results, find_by_settings
from randlora_core.experiment.sweeps.comparison_file import (
    Comparison,
    ComparisonFile,
    load_comparison,
    option_of,
    select,
)
from randlora_core.experiment.sweeps.sweep import Outcome

DEFAULT = "default"
SECONDS_BETWEEN_SAVES = 60.0
HINT = "finished runs are kept, and the same command takes up the rest"


def main(experiment: Experiment | None = None, arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        experiment: The experiment whose comparisons are meant; None for that of the comparison's file.
        arguments: The command line; None for the process's own.
    """
    return run_command(lambda words: _main(experiment, words), arguments, HINT)


def _main(experiment: Experiment | None, arguments: Sequence[str]) -> int:
    options, comparison, experiments = parse_comparison(experiment, arguments, "compare", __doc__ or "", _add_options)
    if options.output is not None and not options.from_records:
        raise ValueError(f"--output {options.output} without --from-records; accepted: both, or paths.results=FOLDER")
    for name in ("from_records", "save_records"):
        if options.dry_run and getattr(options, name):
            raise ValueError(f"--dry-run with --{name.replace('_', '-')}; accepted: one of them")
    if options.format == "tsv":
        return _print_lines(options, comparison, experiments)
    print(comparison.describe(), flush=True)
    planned = _plan(options, comparison, experiments)
    if options.from_records:
        return _show_committed(comparison, experiments, planned, options.output)
    if options.save_records:
        _save(comparison, planned)
    if options.dry_run:
        print_dry_run(planned, options.execution.jobs)
        return 0
    return _run(comparison, planned, options)


def _plan(options: argparse.Namespace, comparison: Comparison, experiments: dict[str, Experiment]) -> list[PlannedRun]:
    planned = plan_comparison(comparison, experiments, options.methods, inputs_needed=not options.from_records)
    return adopt_records(planned) if options.adopt_records else planned


def _print_lines(options: argparse.Namespace, comparison: Comparison, experiments: dict[str, Experiment]) -> int:
    """Prints the table of runs and nothing else on standard output; what is not on this machine is not asked for."""
    if not options.dry_run:
        raise ValueError("--format=tsv lists runs; accepted: with --dry-run")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with contextlib.redirect_stdout(sys.stderr):
        print(comparison.describe())
        planned = _plan(options, comparison, experiments)
    print("\n".join(run_lines(planned)))
    return 0


def _run(comparison: Comparison, planned: Sequence[PlannedRun], options: argparse.Namespace) -> int:
    planned, saved = fetch_inputs(planned), time.monotonic()

    def keep(outcome: Outcome) -> None:
        nonlocal saved
        if options.save_records and time.monotonic() - saved >= SECONDS_BETWEEN_SAVES:
            _save(comparison, planned)
            saved = time.monotonic()

    try:
        title = f"comparison {comparison.name}"
        outcomes = execute_runs(planned, title, execution=options.execution, on_outcome=keep)
    finally:  # what is finished is saved even if the rest is interrupted
        if options.save_records:
            _save(comparison, planned)
    if not outcomes:  # every run lacks an input, as was told; a table of dashes would tell no more
        return FAILED
    records = {outcome.run.run_id: outcome.record for outcome in outcomes}
    folder = f"{comparison.name}-part" if options.methods or comparison.is_narrowed else comparison.name
    for report in build_reports(comparison, planned, lambda entry: records.get(entry.run_id)):
        print_report(report, make_console())
        results = results_folder(planned[0].config) / report.results.experiment.name
        _write(report, results / folder)
    incomplete = any(entry.missing is not None for entry in planned)
    return FAILED if print_failures(outcomes) or incomplete else 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds instead of the comparison's")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with an estimate; train nothing")
    parser.add_argument("--format", choices=("text", "tsv"), default="text", help="of the dry run; tsv: a line per run")
    parser.add_argument("--from-records", action="store_true", help="tables from the committed records; train nothing")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="with --from-records: write tables and figures")
    parser.add_argument("--save-records", action="store_true", help="write what is finished to the committed records")


def parse_comparison(
    experiment: Experiment | None,
    arguments: Sequence[str],
    command: str,
    description: str,
    add_options: Callable[[argparse.ArgumentParser], None],
) -> tuple[argparse.Namespace, Comparison, dict[str, Experiment]]:
    """Reads the command line of a command on a comparison, and the comparison that it names.

    Args:
        experiment: The experiment whose comparisons are meant, or None.
        arguments: The command line.
        command: The command's module, for messages.
        description: Its help text.
        add_options: Adds the command's own options.

    Returns:
        The options, the comparison, and its experiments by name.

    Raises:
        ValueError: Bad input, or a comparison of another experiment than the given one.
    """
    words, pairs = split_arguments(arguments)
    configs = experiment.configs if experiment is not None else CONFIGS
    named = [text.removeprefix("name=") for text in pairs if text.startswith("name=")]
    named += words[:1] if words and not words[0].startswith("-") else []
    name = named[0] if named else DEFAULT
    scale = _last("scale", pairs, None)
    tuned = _last("tuned", pairs, "false")
    if tuned not in ("true", "false"):
        raise ValueError(f"tuned={tuned}; accepted: true, false")
    file = load_comparison(name, scale=scale, configs=configs).file
    first = experiment if experiment is not None else find_experiment(file.experiment)
    if first.name != file.experiment:
        owner = f"python -m {file.experiment}.{command}"
        raise ValueError(f"comparison {name!r} is of {file.experiment}; accepted: {owner}, or a name of {first.name}'s")
    program = f"{experiment.name if experiment else 'randlora_core.experiment'}.{command}"
    parser = make_parser(program, description, "[NAME] [scale=SCALE] [options] [SETTING=VALUE ...]")
    parser.add_argument("name", nargs="?", help=f"a file of configs/comparison (default: {DEFAULT})")
    for axis in first.axes:
        parser.add_argument(option_of(axis.key), nargs="+", metavar="VALUE", type=_value, dest=f"axis_{axis.key}")
    parser.add_argument("--methods", nargs="+", metavar="LABEL", help="only these rows, such as RandLoRA-6")
    parser.add_argument("--adopt-records", action="store_true", help="copy committed records of these runs to results")
    add_execution(parser)
    add_options(parser)
    options = parser.parse_args(words)
    options.execution = read_execution(options)
    if options.name not in (None, name):
        raise ValueError(f"unexpected argument {options.name!r}; accepted: the comparison's name before all options")
    comparison = load_comparison(
        name,
        scale=scale,
        overrides=[text for text in pairs if not text.startswith(("name=", "scale=", "tuned="))],
        axes={axis.key: getattr(options, f"axis_{axis.key}") for axis in first.axes},
        seeds=getattr(options, "seeds", None),
        tuned=tuned == "true",
        configs=configs,
    )
    return options, comparison, comparison.experiments(first)


def _last(key: str, pairs: Sequence[str], default: str | None) -> str | None:
    """The value of the last `key=value`."""
    return next((text.removeprefix(f"{key}=") for text in reversed(pairs) if text.startswith(f"{key}=")), default)


def plan_comparison(
    comparison: Comparison,
    experiments: dict[str, Experiment],
    labels: Sequence[str] | None,
    *,
    inputs_needed: bool = True,
) -> list[PlannedRun]:
    """Plans all runs of a comparison, or those of some rows.

    Raises:
        ValueError: Bad input, a label that is none of the rows', or rows that cannot be told apart.
    """
    planned = [
        entry
        for name, experiment in experiments.items()
        for entry in plan_runs(
            experiment, [overrides for _, overrides in comparison.runs(name)], inputs_needed=inputs_needed
        )
    ]
    if not planned:
        given = " ".join(f"{option_of(axis)} {' '.join(map(str, values))}" for axis, values in comparison.axes.items())
        raise ValueError(f"no run of {comparison.name} is at {given}; accepted: values that stand together in its file")
    check_distinct(planned)
    known = list(dict.fromkeys(entry.label for entry in planned))
    if not comparison.axes:  # on some values of the axes some rows may have no run
        file, name = comparison.file, comparison.path.name
        _check_pairs(file, planned, f"pairs of {name}")
        beside = [label for entry in file.published for label in entry.rows]
        select(known, beside, f"method in published of {name}:")
        select(known, [file.reference] if file.reference else None, f"reference in {name}:")
    chosen = select(known, labels, "method")
    return [entry for entry in planned if entry.label in chosen]


def _check_pairs(file: ComparisonFile, planned: Sequence[PlannedRun], where: str) -> None:
    """Refuses pairs of an experiment or of labels that the comparison does not have."""
    if not isinstance(file.pairs, Mapping):
        labels = list(dict.fromkeys(entry.label for entry in planned))
        select(labels, [label for pair in file.pairs for label in pair], f"method in {where}:")
        return
    select(list(dict.fromkeys(entry.experiment.name for entry in planned)), file.pairs, f"experiment in {where}:")
    for experiment, pairs in file.pairs.items():
        own = list(dict.fromkeys(entry.label for entry in planned if entry.experiment.name == experiment))
        select(own, [label for pair in pairs for label in pair], f"method in {where}, {experiment}:")


def build_reports(
    comparison: Comparison, planned: Sequence[PlannedRun], find: Callable[[PlannedRun], Record | None]
) -> list[Report]:
    """A report for each experiment of a comparison."""
    reports = []
    for name in dict.fromkeys(entry.experiment.name for entry in planned):
        ours = [entry for entry in planned if entry.experiment.name == name]
        results = collect_results(comparison.name, ours, find)
        file = comparison.file
        reports.append(make_report(results, file.pairs_of(name), file.reference, file.published))
    return reports


def committed_reports(comparison: Comparison, experiments: dict[str, Experiment]) -> list[Report]:
    """The reports of a comparison's committed records; nothing but the repository is needed."""
    planned = plan_comparison(comparison, experiments, None, inputs_needed=False)
    return _committed(comparison, experiments, planned)


def _committed(
    comparison: Comparison, experiments: dict[str, Experiment], planned: Sequence[PlannedRun]
) -> list[Report]:
    records = [record for experiment in experiments.values() for record in committed_records(experiment)]
    return build_reports(comparison, planned, find_by_settings(records))


def _show_committed(
    comparison: Comparison, experiments: dict[str, Experiment], planned: Sequence[PlannedRun], output: Path | None
) -> int:
    for report in _committed(comparison, experiments, planned):
        print_report(report, make_console())
        if output is not None:
            _write(report, output / report.results.experiment.name)
        elif report.points_note:
            print(f"{report.points_note}, which --output FOLDER writes.")
    return 0


def _write(report: Report, folder: Path) -> None:
    print("written: " + ", ".join(str(path) for path in write_report(report, folder)))
    if report.points_note:
        print(f"{report.points_note}.")


def _save(comparison: Comparison, planned: Sequence[PlannedRun]) -> None:
    for name in dict.fromkeys(entry.experiment.name for entry in planned):
        ours = [entry for entry in planned if entry.experiment.name == name]
        path = ours[0].experiment.records_folder / f"{comparison.name}.jsonl"
        print(f"{save_finished(ours, path)} records in {path}")


def _value(text: str) -> Any:
    """A value on an axis as YAML reads it: 4, 0.5, null or a name."""
    import yaml

    return yaml.safe_load(text)


if __name__ == "__main__":
    sys.exit(main())
