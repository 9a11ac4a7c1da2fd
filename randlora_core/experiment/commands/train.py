"""The command line of one run, or of a small sweep of runs: overrides in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from randlora_core.command_line import FAILED, run_command
from randlora_core.experiment.commands.execution import execute_runs, print_failures
from randlora_core.experiment.commands.options import (
    add_execution,
    describe_settings,
    make_parser,
    read_execution,
    split_arguments,
)
from randlora_core.experiment.compose import expand
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.loop.hardware import is_first_process
from randlora_core.experiment.planning import PlannedRun, plan_run, plan_runs
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.records.reading import Record
from randlora_core.experiment.reports.report import make_console, make_report, print_report
from randlora_core.experiment.reports.results import collect_results
from randlora_core.experiment.running import execute
from randlora_core.experiment.sweeps.executors import Execution

PROGRESS_LINES = 10


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Runs the command line of an experiment and returns the exit code: 0, or as `randlora_core.command_line` says."""
    return run_command(
        lambda words: _main(experiment, words),
        arguments,
        "the same command goes on from the last saved state, if there is one",
    )


def _main(experiment: Experiment, arguments: Sequence[str]) -> int:
    options, overrides = split_arguments(arguments)
    usage = "[-m] [--cfg job] [SETTING=VALUE ...]"
    parser = make_parser(f"{experiment.name}.train", describe_settings(experiment), usage)
    parser.add_argument("-m", "--multirun", action="store_true", help="a run for every combination of values: seed=1,2")
    parser.add_argument("--cfg", choices=["job"], help="print the configuration and train nothing")
    add_execution(parser)
    chosen = parser.parse_args(options)
    if chosen.cfg:
        runs = expand(overrides) if chosen.multirun else [overrides]
        return _print_config([build_config(experiment, one) for one in runs])
    if chosen.multirun:
        return _train_many(experiment, expand(overrides), read_execution(chosen))
    for name in ("jobs", "executor"):
        if (value := getattr(chosen, name)) != parser.get_default(name):
            raise ValueError(f"--{name} {value} has no effect on a single run; accepted: with -m")
    return _train_one(plan_run(experiment, overrides))


def _print_config(configs: Sequence[RunConfig]) -> int:
    import yaml

    print(yaml.safe_dump_all([config.model_dump(mode="json") for config in configs], sort_keys=False), end="")
    return 0


def _train_one(planned: PlannedRun) -> int:
    record = planned.finished
    if record is not None:
        print(f"run {planned.run_id} has finished before; delete {planned.path} to do it again")
    else:
        record = execute(planned, show_progress)
    if is_first_process():
        print(summary(planned, record))
    return 0


def _train_many(experiment: Experiment, override_lists: Sequence[Sequence[str]], execution: Execution) -> int:
    planned = plan_runs(experiment, override_lists)
    for entry in planned:
        if entry.missing is not None:
            raise ValueError(entry.missing)
    outcomes = execute_runs(planned, "sweep", execution=execution)
    records = {outcome.run.run_id: outcome.record for outcome in outcomes}
    results = collect_results("sweep", _told_apart(planned), lambda entry: records[entry.run_id])
    if any(entry.config.evaluate.test for entry in planned):
        print_report(make_report(results), make_console())
    return FAILED if print_failures(outcomes) else 0


def _told_apart(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs as rows of a table: where method, data and seed do not tell them apart, the label names what does."""
    runs = {(entry.label, entry.point, entry.config.seed, entry.identity.settings) for entry in planned}
    if len(runs) == len({run[:-1] for run in runs}):
        return list(planned)
    shared = set.intersection(*(set(entry.overrides) for entry in planned))
    named = {"seed", "adapter", "backbone.quantize", *(axis.key for axis in planned[0].experiment.axes)}
    rows = []
    for entry in planned:
        varied = [text for text in entry.overrides if text not in shared and text.partition("=")[0] not in named]
        adapter = entry.config.adapter.model_copy(update={"label": " ".join([entry.config.adapter.label, *varied])})
        rows.append(replace(entry, config=entry.config.model_copy(update={"adapter": adapter})))
    return rows


def show_progress(event: dict[str, Any]) -> None:
    """Prints about ten lines a run."""
    step, steps = event["step"], event["steps"]
    if (
        is_first_process()
        and event["phase"] == "train"
        and (step == steps or step % max(1, steps // PROGRESS_LINES) == 0)
    ):
        speed = f"  {event['speed']:.0f} {event['unit']}/s" if event["speed"] else ""
        print(f"step {step}/{steps}  loss {event['loss']:.4f}{speed}", flush=True)


def summary(planned: PlannedRun, record: Record) -> str:
    """The result in a line, and where the rest is."""
    scores = record["scores"]
    shown = [f"{name} {100 * score['value']:.2f} %" for name, score in scores["test"].items()]
    if len(shown) > 1 and scores["mean"] is not None:
        shown.append(f"mean {100 * scores['mean']:.2f} %")
    validation = f"validation {planned.experiment.format_criterion(scores['validation'])}"
    trainable, seconds = record["parameters"]["trainable"], record["time"]["total_seconds"]
    facts = f"{', '.join([*shown, validation])}; {trainable:,} trainable parameters; {seconds:.1f} s"
    return f"{planned.label}: {facts}\nrecord: {planned.path}"
