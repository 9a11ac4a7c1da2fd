"""The tuning command: chooses every method's learning rate on the validation split and keeps every record.

    python -m vision_language.tune                        for the default comparison
    python -m vision_language.tune figure3 paths.data=/data
    python -m vision_language.tune --records try.jsonl training.steps=5      a trial that changes no committed record

Every method gets the same number of values around its own centre, which the comparison's file states, widened where
the best lies at an end. The test sets are not touched. The records go to `<experiment>/records/tuning_<name>.jsonl`
(`tuning_<name>_<scale>.jsonl`), which is committed and from which runs take their learning rate, or to the file that
`--records` names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from randlora_core.command_line import FAILED, run_command
from randlora_core.experiment.commands.compare import HINT, parse_comparison
from randlora_core.experiment.commands.execution import adopt_records, execute_runs, fetch_inputs, print_failures
from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.planning import PlannedRun, plan_runs
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.records.reading import Record, collect_records, is_finished, validation_of
from randlora_core.experiment.reports.formats import TextTable
from randlora_core.experiment.reports.report import make_console, print_table
from randlora_core.experiment.sweeps.comparison_file import Comparison, GridRule, select
from randlora_core.experiment.sweeps.executors import Execution
from randlora_core.experiment.sweeps.rate_grid import choose, next_values
from randlora_core.experiment.sweeps.sweep import Outcome


@dataclass
class RateSearch:
    """One method under one setting while its learning rate is sought.

    Attributes:
        experiment: Whose runs they are.
        overrides: What makes a run of it, with `centre` for its learning rate.
        centre: Middle of the first grid.
        name: The setting in a few words.
        scores: Learning rate -> validation score, None for a failed run.
    """

    experiment: Experiment
    overrides: tuple[str, ...]
    centre: float
    name: str
    scores: dict[float, float | None] = field(default_factory=dict)


def main(experiment: Experiment | None = None, arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        experiment: The experiment whose comparisons are meant; None for that of the comparison's file.
        arguments: The command line; None for the process's own.
    """
    return run_command(lambda words: _main(experiment, words), arguments, HINT)


def _main(experiment: Experiment | None, arguments: Sequence[str]) -> int:
    options, comparison, experiments = parse_comparison(experiment, arguments, "tune", __doc__ or "", _add_options)
    print(comparison.describe(), flush=True)
    searches = find_searches(comparison, experiments, options.methods)
    if not searches:
        raise ValueError(f"{comparison.name}: no row has a learning rate to choose; accepted: another name or scale")
    failures = 0
    for name, ours in searches.items():
        path = options.records or experiments[name].records_folder / f"tuning_{comparison.name}.jsonl"
        rule, adopt = comparison.file.tuning, options.adopt_records
        outcomes = search_rates(ours, rule, path, execution=options.execution, adopt=adopt)
        records = [outcome.record for outcome in outcomes]
        print_table(choice_table(ours), make_console())
        print(f"{merge_records(path, records)} records in {path}")
        failures += print_failures(outcomes)
    return FAILED if failures else 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--records", type=Path, metavar="FILE", help="file for the records (default: the committed one)"
    )


def find_searches(
    comparison: Comparison, experiments: Mapping[str, Experiment], labels: Sequence[str] | None = None
) -> dict[str, list[RateSearch]]:
    """What there is to tune by experiment: every row with a centre, under every setting that its rates are taken from.

    Raises:
        ValueError: Bad input, inputs that are not here, or a label that is none of the rows'.
    """
    found: dict[str, list[RateSearch]] = {}
    known: dict[str, None] = {}
    for name, experiment in experiments.items():
        rows = [(row, runs) for row, runs in comparison.runs(name, [comparison.file.tuning.seed]) if row.centre]
        fixed = ("training.rate_from=null", "evaluate.test=false")
        overrides = [
            (*runs, *(row.tuned_on or ()), *fixed, f"training.learning_rate={row.centre}") for row, runs in rows
        ]
        by_setting: dict[str, RateSearch] = {}
        for (row, _), entry in zip(rows, plan_runs(experiment, overrides), strict=True):
            if entry.missing is not None:
                raise ValueError(entry.missing)
            known[entry.label] = None
            where = f"{experiment.describe(entry.point)}, {entry.label}"
            search = RateSearch(experiment, entry.overrides, row.centre, where)
            if labels is None or entry.label in labels:
                by_setting.setdefault(entry.identity.tuning, search)
        if by_setting:
            found[name] = list(by_setting.values())
    select(list(known), labels, "method")
    return found


def search_rates(
    searches: Sequence[RateSearch], rule: GridRule, path: Path, *, execution: Execution, adopt: bool = False
) -> list[Outcome]:
    """Runs the grids round by round until none is widened any more; fills in the searches' scores.

    Args:
        searches: What to tune, all of one experiment.
        rule: Size and limit of the grids.
        path: Gets the records of every search that has come to its end, since a part of a grid chooses nothing. If the
            tuning is interrupted, what is finished of the others goes to `unfinished_` and the file's name, from where
            another machine adopts it.
        execution: Where runs are done, and how many at a time.
        adopt: Take over committed records of exactly these runs.

    Returns:
        The outcomes of all runs.

    Raises:
        ValueError: Weights that a package index has cannot be got from it.
    """
    outcomes: list[Outcome] = []
    found: dict[int, list[Record]] = {id(search): [] for search in searches}
    runs: dict[int, list[PlannedRun]] = {id(search): [] for search in searches}
    try:
        for number in range(1, rule.limit + 1):
            wanted = {
                (*search.overrides, f"training.learning_rate={value}"): (search, value)
                for search in searches
                for value in _next_values(search, rule)
            }
            if not wanted:
                break
            planned = plan_runs(searches[0].experiment, wanted)
            planned = fetch_inputs(adopt_records(planned) if adopt else planned)
            if missing := next((entry.missing for entry in planned if entry.missing is not None), None):
                raise ValueError(missing)
            for entry in planned:
                runs[id(wanted[entry.overrides][0])].append(entry)
            done = execute_runs(planned, f"tuning, round {number}", execution=execution)
            records = {outcome.run.run_id: outcome.record for outcome in done}
            for entry in planned:
                search, value = wanted[entry.overrides]
                record = records[entry.run_id]
                search.scores[value] = validation_of(record)
                found[id(search)].append(record)
            outcomes += done
            ended = [search for search in searches if not _next_values(search, rule)]
            merge_records(path, [record for search in ended for record in found[id(search)]])
    finally:
        left = [search for search in searches if _next_values(search, rule)]
        ended = [entry for search in searches if search not in left for entry in runs[id(search)]]
        unfinished = [entry for search in left for entry in runs[id(search)]]
        _keep_unfinished(unfinished, ended, path.with_name(f"unfinished_{path.name}"))
    return outcomes


def _keep_unfinished(unfinished: Sequence[PlannedRun], ended: Sequence[PlannedRun], path: Path) -> None:
    """Keeps finished runs of searches that were interrupted where no learning rate is read off them."""
    merged = {entry.run_id for entry in ended}
    earlier = read_records(path) if path.exists() else []
    kept = [record for record in earlier if record["run_id"] not in merged]
    kept += [record for entry in unfinished if is_finished(record := entry.ledger.read(entry.run_id))]
    if kept:
        collect_records(kept, path)
    else:
        path.unlink(missing_ok=True)


def _next_values(search: RateSearch, rule: GridRule) -> Sequence[float]:
    return next_values(search.scores, centre=search.centre, num_values=rule.num_values, limit=rule.limit)


def merge_records(path: Path, records: Sequence[Record]) -> int:
    """Writes tuning records to a file; settings that are tuned again, in the same number format, replace what it holds.

    Returns:
        The number of records in the file.
    """
    tuned = {_setting(record) for record in records}
    earlier = read_records(path) if path.exists() else []
    kept = [record for record in earlier if _setting(record) not in tuned]
    return collect_records([*kept, *records], path, statuses=("finished", "failed"))


def _setting(record: Record) -> tuple[str, str]:
    return record["identity"]["tuning"], record["config"]["training"]["precision"]


def choice_table(searches: Sequence[RateSearch]) -> TextTable:
    """What was chosen, one row for each search."""
    rows = []
    for search in searches:
        value = choose(search.scores)
        if value is None:
            rows.append((search.name, "-", "-", "every run failed"))
            continue
        tried = f"{len(search.scores)} from {min(search.scores):g} to {max(search.scores):g}"
        interior = min(search.scores) < value < max(search.scores)
        best = search.experiment.format_criterion(search.scores[value])
        rows.append((search.name, f"{value:g}", best, tried + ("" if interior else ", at an end")))
    criterion = searches[0].experiment.criterion if searches else ""
    columns = ("Data, method", "Learning rate", f"Validation {criterion}", "Values tried")
    return TextTable("Learning rates chosen on the validation split", columns, tuple(rows))


if __name__ == "__main__":
    sys.exit(main())
