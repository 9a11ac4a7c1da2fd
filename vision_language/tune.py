"""The tuning command: chooses every method's learning rate on the validation split and keeps every record.

    python -m vision_language.tune                        for the default comparison
    python -m vision_language.tune longer paths.data=/data
    python -m vision_language.tune --records try.jsonl training.steps=5      a trial that changes no committed record

Every method gets the same number of values around its own centre (`configs/comparison/<name>.yaml`), widened where the
best lies at an end. The test split is not touched. The records go to `vision_language/records/tuning_<name>.jsonl`,
which is committed and from which `vision_language.train` takes its learning rate where the config gives none, or to the
file that `--records` names.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from randlora_core.experiment.forkserver import start_server
from randlora_core.experiment.ledger import read_records
from randlora_core.experiment.records import Config, Record, backbone_of, collect_records, dataset_of, label_of
from randlora_core.experiment.report import make_console, print_table
from randlora_core.experiment.sweep import Outcome, plan_sweep
from randlora_core.experiment.tables import TextTable
from randlora_core.experiment.tuning import next_values, tuned_learning_rate
from vision_language.compare import base_parser, execute, guarded, parse_command, print_failures, select_methods
from vision_language.comparisons import (
    PRELOAD,
    RECORDS_FOLDER,
    ComparisonPlan,
    MethodEntry,
    TuningPlan,
    identify,
    load_comparison,
    run,
)

FUNCTIONS = (identify, run)


@dataclass
class Setting:
    """One method on one dataset while its learning rate is sought.

    Attributes:
        overrides: What makes a run of it, without the learning rate.
        centre: Middle of the first grid.
        scores: Learning rate -> validation accuracy, None for a failed run.
    """

    overrides: tuple[str, ...]
    centre: float
    scores: dict[float, float | None] = field(default_factory=dict)


def tuning_settings(plan: ComparisonPlan) -> list[Setting]:
    """What there is to tune: every method with a centre on every dataset."""
    return [
        Setting(_overrides(plan, method, dataset), method.centre)
        for dataset in plan.datasets
        for method in plan.methods
        if method.centre is not None
    ]


def tune(
    settings: Sequence[Setting],
    plan: TuningPlan,
    *,
    methods: Sequence[str] | None = None,
    jobs: int = 1,
    functions: tuple[Callable[..., dict], Callable[..., Record]] = FUNCTIONS,
) -> list[Outcome]:
    """Runs the grids round by round until no grid is widened any more; fills in the settings' scores.

    Args:
        settings: What to tune.
        plan: Size and limit of the grids.
        methods: Labels of the methods to tune; None for all.
        jobs: Runs at a time.
        functions: `identify` and `run` of the experiment.

    Returns:
        The outcomes of all runs.

    Raises:
        ValueError: Bad input, or an unknown method.
    """
    outcomes: list[Outcome] = []
    for number in range(1, plan.limit + 1):
        wanted = {
            (*setting.overrides, f"training.learning_rate={value}"): (setting, value)
            for setting in settings
            for value in next_values(
                setting.scores, centre=setting.centre, num_values=plan.num_values, limit=plan.limit
            )
        }
        if not wanted:
            break
        planned = select_methods(plan_sweep(wanted, functions[0]), methods)
        chosen = {id(wanted[entry.overrides][0]) for entry in planned}
        settings = [setting for setting in settings if id(setting) in chosen]
        done = execute(planned, functions[1], f"tuning, round {number}", jobs=jobs)
        for outcome in done:
            setting, value = wanted[outcome.run.overrides]
            setting.scores[value] = (
                outcome.record["result"]["validation_accuracy"] if outcome.status != "failed" else None
            )
        outcomes += done
        methods = None
    return outcomes


def merge_records(path: Path, records: Sequence[Record]) -> int:
    """Writes tuning records to the committed file; settings tuned again replace what it holds of them.

    Returns:
        The number of records in the file.
    """
    tuned = {_setting_of(record["config"]) for record in records}
    earlier = read_records(path) if path.exists() else []
    kept = [record for record in earlier if _setting_of(record["config"]) not in tuned]
    return collect_records([*kept, *records], path, statuses=("finished", "failed"))


def choice_table(records: Sequence[Record]) -> TextTable:
    """What the records choose: one row per method and dataset."""
    rows = []
    for label, dataset, backbone, shots, fraction in dict.fromkeys(_setting_of(record["config"]) for record in records):
        rate = tuned_learning_rate(
            records, label=label, dataset=dataset, backbone=backbone, shots=shots, fraction=fraction
        )
        if rate is None:
            rows.append((label, dataset, "-", "-", "every run failed"))
            continue
        best = next(entry["validation_accuracy"] for entry in rate.grid if entry["value"] == rate.value)
        tried = f"{len(rate.grid)} from {rate.grid[0]['value']:g} to {rate.grid[-1]['value']:g}"
        rows.append(
            (label, dataset, f"{rate.value:g}", f"{100 * best:.1f}", tried + ("" if rate.interior else ", at an end"))
        )
    columns = ("Method", "Dataset", "Learning rate", "Validation %", "Values tried")
    return TextTable("Learning rates chosen on the validation split", columns, tuple(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = base_parser("vision_language.tune", __doc__ or "")
    parser.add_argument(
        "--records", type=Path, metavar="FILE", help="file for the records (default: the committed one)"
    )
    command = parse_command(parser, sys.argv[1:] if arguments is None else arguments)
    path = command.options.records or RECORDS_FOLDER / f"tuning_{command.name}.jsonl"

    def work() -> int:
        plan = load_comparison(command.name, overrides=command.overrides, datasets=command.options.datasets)
        start_server(PRELOAD)
        outcomes = tune(tuning_settings(plan), plan.tuning, methods=command.options.methods, jobs=command.options.jobs)
        return _conclude(path, outcomes)

    return guarded(work)


def _conclude(path: Path, outcomes: Sequence[Outcome]) -> int:
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    print_table(choice_table(records), make_console())
    print(f"{merge_records(path, records)} records in {path}")
    return 1 if print_failures(outcomes) else 0


def _overrides(plan: ComparisonPlan, method: MethodEntry, dataset: str) -> tuple[str, ...]:
    return (*plan.shared_overrides(method, dataset), f"seed={plan.tuning.seed}", "evaluate.test=false")


def _setting_of(config: Config) -> tuple[str, str, str, int | None, float | None]:
    return label_of(config), dataset_of(config), backbone_of(config), config["shots"], config["fraction"]


if __name__ == "__main__":
    sys.exit(main())
