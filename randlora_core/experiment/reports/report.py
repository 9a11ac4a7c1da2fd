"""What a comparison reports at its end: tables, figure, notes and a verdict on each pair, all from its records."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from randlora_core.experiment.records.reading import Record, backbone_of
from randlora_core.experiment.reports.figures import plot_accuracy_against_parameters
from randlora_core.experiment.reports.results import PairedResult, Point, Results, compare_pair
from randlora_core.experiment.reports.tables import (
    TextTable,
    overview_tables,
    point_table,
    to_csv,
    to_markdown,
    to_rich,
)
from randlora_core.files import atomic_file

if TYPE_CHECKING:
    from rich.console import Console

PAIRS_TITLE = "Differences in points of accuracy, [paired bootstrap over samples and seeds], t over seeds, 95 %"


@dataclass(frozen=True)
class Report:
    """Results ready to be shown.

    Attributes:
        results: The numbers.
        tables: The overview first, then one table per point.
        notes: What a reader must know about the numbers, one sentence or two each.
        pairs: The pairs that the comparison asks about, at every point.
    """

    results: Results
    tables: tuple[TextTable, ...]
    notes: tuple[str, ...]
    pairs: tuple[PairedResult, ...]


def make_report(results: Results, pairs: Sequence[tuple[str, str]] = (), reference: str | None = None) -> Report:
    """Computes tables, notes and verdicts.

    Args:
        results: The numbers.
        pairs: (method, rival) labels to hold against each other at every point; those without a row are left out.
        reference: Label of the row to hold every other one against; without a row it is left out.

    Raises:
        ValueError: The methods of a pair were not tested on the same samples.
    """
    asked = [(method, rival) for method, rival in pairs if {method, rival} <= set(results.methods)]
    paired = tuple(compare_pair(results, *pair, point) for point in results.points for pair in asked)
    reference = reference if reference in results.methods else None
    details = [point_table(results, point, _verdicts(results, reference, point)) for point in results.points]
    notes = list(make_notes(results))
    if reference is not None:
        notes.append(f"Against reference: whether the method beats {reference}, by the same test as the pairs.")
    return Report(results, (*overview_tables(results), *details), tuple(notes), paired)


def describe_pair(results: Results, pair: PairedResult) -> str:
    """One line: the difference in points, [bootstrap interval], t interval over seeds, and what follows from them.

    Example: `digits: A - B = +0.4 [-0.3, +1.1], over seeds ± 2.0: no significant difference (3 seeds, 1.01 x
    parameters)`.
    """
    name = f"{results.title(pair.point)}: {pair.method} - {pair.rival}"
    if pair.difference is None:
        return f"{name} = - (no finished runs of both with a common seed)"
    found = pair.difference
    seeds = f"{len(pair.seeds)} seed{'s' if len(pair.seeds) > 1 else ''}"
    spread = "" if found.over_seeds.half_width is None else f", over seeds ± {100 * found.over_seeds.half_width:.1f}"
    parameters = "" if pair.parameter_ratio is None else f", {pair.parameter_ratio:.2f} x parameters"
    interval = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{spread}"
    return f"{name} = {interval}: {found.verdict} ({seeds}{parameters})"


def make_notes(results: Results) -> Iterable[str]:
    """The notes under a comparison's tables, from its records alone."""
    records = results.records()
    if missing := results.num_missing:
        yield f"{missing} of {sum(results.expected.values())} runs are not there; their cells are '-' or say so."
    if not records:
        return
    yield _setting_note(results)
    yield from _rate_notes(results)
    yield from dict.fromkeys(remark for record in records for remark in record["data"]["remarks"])
    counters = sorted({record["memory"]["counter"] for record in records})
    yield f"Peak memory: {', '.join(counters)}; the largest over seeds. Train s: the median over seeds."
    machines = sorted({_hardware(record) for record in records})
    warning = " Seconds and memory of different machines are not comparable." if len(machines) > 1 else ""
    yield f"Hardware: {'; '.join(machines)}.{warning}"
    yield f"Code: commit {', '.join(sorted({_commit(record) for record in records}))}."


def print_report(report: Report, console: Console) -> None:
    """Prints tables, notes and verdicts."""
    for table in report.tables:
        print_table(table, console)
    for note in report.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if report.pairs:
        console.print(f"\n{PAIRS_TITLE}:", markup=False, highlight=False, soft_wrap=True)
    for pair in report.pairs:
        console.print(f"  {describe_pair(report.results, pair)}", markup=False, highlight=False, soft_wrap=True)


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
    markdown = f"# Comparison {report.results.name}\n\n{report_markdown(report)}"
    for path, text in zip(paths, (markdown, to_csv(report.results)), strict=True):
        with atomic_file(path) as part:
            part.write_text(text, encoding="utf-8")
    if report.results.cells:
        paths.append(directory / "accuracy.png")
        plot_accuracy_against_parameters(report.results, paths[-1])
    return paths


def report_markdown(report: Report) -> str:
    """Tables, verdicts and notes as Markdown."""
    sections = [f"**{table.title}**\n\n{to_markdown(table)}" for table in report.tables]
    if report.pairs:
        verdicts = "".join(f"- {describe_pair(report.results, pair)}\n" for pair in report.pairs)
        sections.append(f"{PAIRS_TITLE}:\n\n{verdicts}")
    sections.append("Notes:\n\n" + "".join(f"- {note}\n" for note in report.notes))
    return "\n".join(sections)


def _verdicts(results: Results, reference: str | None, point: Point) -> dict[str, str] | None:
    """Method -> how it stands against the reference; None where there is no reference."""
    if reference is None:
        return None
    pairs = [compare_pair(results, method, reference, point) for method in results.methods if method != reference]
    return {pair.method: pair.difference.verdict for pair in pairs if pair.difference is not None}


def _setting_note(results: Results) -> str:
    """Backbones, and how long the trained methods were trained on what."""
    records = results.records()
    points: dict[str, dict[str, None]] = {}
    for (_, point), cell in results.cells.items():
        for record in cell.runs:
            if record["learning_rate"]["value"] is not None:
                points.setdefault(_length(record), {})[results.title(point)] = None
    lengths = [f"{', '.join(titles)} {length}" if len(points) > 1 else length for length, titles in points.items()]
    training = "; ".join(lengths) or "none"
    backbones = ", ".join(sorted({backbone_of(record["config"]) for record in records}))
    return f"Backbone {backbones}; training: {training}; whole test sets unless said otherwise."


def _length(record: Record) -> str:
    training = record["config"]["training"]
    length = f"{training['steps']} steps" if training["steps"] else f"{training['epochs']} epochs"
    return f"{length} of {training['batch_size']} in {training['precision']}"


def _rate_notes(results: Results) -> Iterable[str]:
    """Where the learning rates come from, which decides how far a comparison can be trusted."""
    cells = [(key, cell) for key, cell in results.cells.items() if cell.learning_rate["value"] is not None]
    tuned = [cell for _, cell in cells if cell.learning_rate["grid"]]
    if tuned:
        sizes = sorted({len(cell.learning_rate["grid"]) for cell in tuned})
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        yield f"LR (learning rate): chosen per method on the validation split from {span} values."
    others: dict[str, list[str]] = {}
    for (method, point), cell in cells:
        if (rate := cell.learning_rate)["source"] != "tuned":
            otherwise = (
                f"tuned for {' '.join(rate['tuned_for'])}" if rate["tuned_for"] else "not tuned for these settings"
            )
            others.setdefault(otherwise, []).append(f"{method} on {results.title(point)}")
    for origin, names in others.items():
        yield f"* Learning rate {origin}: {', '.join(names)}."


def _hardware(record: Record) -> str:
    hardware = record["provenance"]["hardware"]
    parts = [hardware["gpu"]] if hardware.get("gpu") else []
    threads = hardware.get("threads", hardware.get("cores"))
    return ", ".join([*parts, hardware["cpu"], "1 thread" if threads == 1 else f"{threads} threads"])


def _commit(record: Record) -> str:
    provenance = record["provenance"]
    commit = (provenance["commit"] or "unknown")[:12]
    return f"{commit} with uncommitted changes" if provenance["dirty"] else commit
