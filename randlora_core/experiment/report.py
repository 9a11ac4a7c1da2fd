"""What a comparison reports at its end: tables, figure, notes and a verdict on each pair, all from its records."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from randlora_core.experiment.comparison import Comparison, Contest, contest
from randlora_core.experiment.figures import plot_accuracy_against_parameters
from randlora_core.experiment.records import Record, backbone_of, dataset_of
from randlora_core.experiment.tables import TextTable, accuracy_table, dataset_table, to_csv, to_markdown, to_rich
from randlora_core.files import atomic_file

if TYPE_CHECKING:
    from rich.console import Console

CONTEST_TITLE = "Differences in points of accuracy, [paired bootstrap over samples and seeds], t over seeds, 95 %"


@dataclass(frozen=True)
class Report:
    """A comparison ready to be shown.

    Attributes:
        comparison: The numbers.
        tables: The overview first, then one table per dataset.
        notes: What a reader must know about the numbers, one sentence or two each.
        contests: The pairs that the comparison asks about, on every dataset.
    """

    comparison: Comparison
    tables: tuple[TextTable, ...]
    notes: tuple[str, ...]
    contests: tuple[Contest, ...]


def make_report(comparison: Comparison, pairs: Sequence[tuple[str, str]] = ()) -> Report:
    """Computes tables, notes and verdicts.

    Args:
        comparison: The numbers.
        pairs: (method, rival) labels to hold against each other on every dataset.

    Raises:
        ValueError: The methods of a pair were not tested on the same samples.
    """
    details = tuple(dataset_table(comparison, dataset) for dataset in comparison.datasets)
    contests = tuple(
        contest(comparison, method, rival, dataset) for dataset in comparison.datasets for method, rival in pairs
    )
    return Report(comparison, (accuracy_table(comparison), *details), tuple(make_notes(comparison)), contests)


def describe_contest(result: Contest) -> str:
    """One line: the difference in points, [bootstrap interval], t interval over seeds, and what follows from them.

    Example: `digits: A - B = +0.4 [-0.3, +1.1], over seeds ± 2.0: no significant difference (3 seeds, 1.01 x
    parameters)`.
    """
    pair = f"{result.dataset}: {result.method} - {result.rival}"
    if result.difference is None:
        return f"{pair} = - (no finished runs of both with a common seed)"
    found = result.difference
    seeds = f"{len(result.seeds)} seed{'s' if len(result.seeds) > 1 else ''}"
    spread = "" if found.over_seeds.half_width is None else f", over seeds ± {100 * found.over_seeds.half_width:.1f}"
    parameters = "" if result.parameter_ratio is None else f", {result.parameter_ratio:.2f} x parameters"
    interval = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{spread}"
    return f"{pair} = {interval}: {found.verdict} ({seeds}{parameters})"


def make_notes(comparison: Comparison) -> list[str]:
    """The notes under a comparison's tables, from its records alone."""
    records = comparison.records()
    if not records:
        return ["No finished run."]
    notes = [_setting_note(records), *_rate_notes(comparison), *_data_notes(records)]
    counters = sorted({record["memory"]["counter"] for record in records})
    notes.append(f"Peak memory: {', '.join(counters)}; the largest over seeds. Train s: the median over seeds.")
    machines = sorted({_hardware(record) for record in records})
    warning = " Seconds and memory of different machines are not comparable." if len(machines) > 1 else ""
    notes.append(f"Hardware: {'; '.join(machines)}.{warning}")
    commits = sorted({_commit(record) for record in records})
    notes.append(f"Code: commit {', '.join(commits)}.")
    return notes


def print_report(report: Report, console: Console) -> None:
    """Prints tables, notes and verdicts."""
    for table in report.tables:
        print_table(table, console)
    for note in report.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if report.contests:
        console.print(f"\n{CONTEST_TITLE}:", markup=False, highlight=False, soft_wrap=True)
    for result in report.contests:
        console.print(f"  {describe_contest(result)}", markup=False, highlight=False, soft_wrap=True)


def make_console() -> Console:
    """The standard output; a file or a pipe, which has no width of its own, takes rows of 120 characters."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def print_table(table: TextTable, console: Console) -> None:
    """Prints a table below its title."""
    console.print(f"\n[bold]{table.title}[/bold]", highlight=False, soft_wrap=True)
    console.print(to_rich(table))


def write_report(report: Report, directory: Path) -> list[Path]:
    """Writes table.md, table.csv and, where there is a result, accuracy.png.

    Args:
        report: The report.
        directory: Folder for the files; made if absent.

    Returns:
        The files written.

    Raises:
        OSError: A file cannot be written; the earlier one of that name is left as it was.
    """
    paths = [directory / "table.md", directory / "table.csv"]
    for path, text in zip(paths, (report_markdown(report), to_csv(report.comparison)), strict=True):
        with atomic_file(path) as part:
            part.write_text(text, encoding="utf-8")
    if report.comparison.cells:
        paths.append(directory / "accuracy.png")
        plot_accuracy_against_parameters(report.comparison, paths[-1])
    return paths


def report_markdown(report: Report) -> str:
    """The whole report as Markdown."""
    sections = [f"# Comparison {report.comparison.name}\n"]
    sections += [f"## {table.title}\n\n{to_markdown(table)}" for table in report.tables]
    sections.append("".join(f"- {note}\n" for note in report.notes))
    if report.contests:
        verdicts = "".join(f"- {describe_contest(result)}\n" for result in report.contests)
        sections.append(f"## {CONTEST_TITLE}\n\n{verdicts}")
    return "\n".join(sections)


def _setting_note(records: Sequence[Record]) -> str:
    backbones = sorted({backbone_of(record["config"]) for record in records})
    datasets: dict[str, list[str]] = {}
    for record in records:
        named = datasets.setdefault(_length(record), [])
        if (name := dataset_of(record["config"])) not in named:
            named.append(name)
    if len(datasets) == 1:
        training = next(iter(datasets))
    else:
        training = "; ".join(f"{', '.join(names)} {length}" for length, names in datasets.items())
    return f"Backbone {', '.join(backbones)}; training: {training}; whole test splits unless said otherwise."


def _length(record: Record) -> str:
    config = record["config"]
    training = config["training"]
    length = f"{training['steps']} steps" if training.get("steps") else f"{training['epochs']} epochs"
    data = "all training images"
    if config.get("shots"):
        data = f"{config['shots']} shots"
    elif config.get("fraction"):
        data = f"{100 * config['fraction']:g} % of the training images"
    return f"{length} of {training['batch_size']} in {training['precision']}, {data}"


def _rate_notes(comparison: Comparison) -> Iterable[str]:
    """Where the learning rates come from, which decides how far a comparison can be trusted."""
    trained = {key: cell for key, cell in comparison.cells.items() if cell.learning_rate is not None}
    tuned = {key: cell for key, cell in trained.items() if cell.learning_rate_source == "tuned"}
    if tuned:
        sizes = sorted({len(next(iter(cell.records.values()))["learning_rate"]["grid"]) for cell in tuned.values()})
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        yield f"LR (learning rate): chosen per method and dataset on the validation split from {span} values."
    if len(tuned) < len(trained):
        missing = [f"{method} on {dataset}" for method, dataset in trained if (method, dataset) not in tuned]
        untuned = ", ".join(missing) if tuned else "all"
        yield f"* Learning rate not tuned for this dataset and these settings: {untuned}."


def _data_notes(records: Iterable[Record]) -> Iterable[str]:
    """What a reader must know about each dataset."""
    short: dict[str, tuple[int, int, int]] = {}
    subsets = set()
    for record in records:
        name, data = dataset_of(record["config"]), record["data"]
        if data["is_subset"]:
            subsets.add(name)
        if counts := data["short_classes"]:
            short[name] = (len(counts), min(counts.values()), record["config"]["shots"])
    for name in sorted(subsets):
        yield f"{name} is a subset of the published dataset: its numbers are not comparable with published ones."
    for name, (count, fewest, shots) in sorted(short.items()):
        yield f"{name}: {count} classes have fewer than {shots} training images and gave all (fewest {fewest})."


def _hardware(record: Record) -> str:
    hardware = record["provenance"]["hardware"]
    parts = [hardware["gpu"]] if hardware.get("gpu") else []
    threads = hardware.get("threads", hardware.get("cores"))
    return ", ".join([*parts, hardware["cpu"], "1 thread" if threads == 1 else f"{threads} threads"])


def _commit(record: Record) -> str:
    provenance = record["provenance"]
    commit = (provenance["commit"] or "unknown")[:12]
    return f"{commit} with uncommitted changes" if provenance["dirty"] else commit
