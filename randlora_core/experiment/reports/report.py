"""What a comparison reports at its end: tables, figures, notes and a verdict on each pair, all from its records."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from randlora_core.experiment.reports import figures, paper_tables, tables
from randlora_core.experiment.reports.formats import TextTable, to_csv, to_latex, to_markdown, to_rich
from randlora_core.experiment.reports.notes import make_notes
from randlora_core.experiment.reports.pairs import PairedResult, best_methods, compare_best, compare_pairs
from randlora_core.experiment.reports.published import PublishedRows
from randlora_core.experiment.reports.results import Point, Results
from randlora_core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

DETAILED_POINTS = 12
"""Points up to which a report shows tables and verdicts of every point; beyond, they are in the CSV files alone."""

PAIRS_TITLE = (
    "Differences in points of accuracy, [paired bootstrap over samples and seeds], t over seeds, 95 %; "
    "p and verdict with Holm's correction {}"
)
PAIR_COLUMNS = (
    *("experiment", "data", "method", "rival", "difference", "low_95", "high_95", "half_width_95_over_seeds"),
    *("p_value", "p_value_corrected", "verdict", "seeds", "parameter_ratio"),
)


@dataclass(frozen=True)
class Report:
    """Results ready to be shown.

    Attributes:
        results: The numbers.
        best: Scope -> the method whose score is marked there.
        tables: The overview first, then the paper's numbers beside ours, time and memory, and a table per point.
        notes: What a reader must know about the numbers, one sentence or two each.
        pairs: The pairs that the comparison asks about, at every point and on the average of every setting.
        paper: The paper's numbers and ours.
    """

    results: Results
    best: tables.Best
    tables: tuple[TextTable, ...]
    notes: tuple[str, ...]
    pairs: tuple[PairedResult, ...]
    paper: tuple[paper_tables.PaperCell, ...]

    @property
    def points_note(self) -> str:
        """Which files of `write_report` have the points that a large report does not show; "" for a small one."""
        if len(self.results.points) <= DETAILED_POINTS:
            return ""
        files = "table.csv and pairs.csv" if self.pairs else "table.csv"
        return f"The {len(self.results.points)} points one by one: {files}"

    @property
    def shown_pairs(self) -> tuple[PairedResult, ...]:
        """The pairs that are printed: all of them, or in a large comparison those on averages."""
        if len(self.results.points) <= DETAILED_POINTS:
            return self.pairs
        return tuple(pair for pair in self.pairs if len(pair.points) > 1)

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures for which there are results, by name."""
        return figures.make_figures(self.results, self.paper)


def make_report(
    results: Results,
    pairs: Sequence[tuple[str, str]] = (),
    reference: str | None = None,
    published: Sequence[PublishedRows] = (),
) -> Report:
    """Computes tables, notes and verdicts.

    Args:
        results: The numbers.
        pairs: (method, rival) labels to hold against each other; those without a row are left out.
        reference: Label of the row to hold every other one against; without a row it is left out.
        published: Which rows stand beside which numbers of the paper.

    Raises:
        ValueError: The methods of a pair were not tested on the same samples.
    """
    leading = compare_best(results)
    best = best_methods(leading)
    paper = paper_tables.paper_cells(results, published)
    asked = [(method, rival) for method, rival in pairs if {method, rival} <= set(results.methods)]
    against = None if reference not in results.methods else _against(results, reference)
    shown = [
        *tables.overview_tables(results, best),
        *paper_tables.paper_tables(results, paper),
        *paper_tables.cost_tables(results, published),
        *_point_tables(results, against),
    ]
    return Report(
        results,
        best,
        tuple(shown),
        (*make_notes(results), *_reading_notes(results, leading, reference, against, paper)),
        compare_pairs(results, asked, results.scopes),
        tuple(paper),
    )


def _against(results: Results, reference: str) -> tuple[PairedResult, ...]:
    """Every other row against the reference, where tables of single points have a column for it."""
    if len(results.points) > DETAILED_POINTS:
        return ()
    rivals = [(method, reference) for method in results.methods if method != reference]
    return compare_pairs(results, rivals, [(point,) for point in results.points])


def _point_tables(results: Results, against: Sequence[PairedResult] | None) -> list[TextTable]:
    if len(results.points) > DETAILED_POINTS:
        return []
    if against is None:
        return [tables.point_table(results, point) for point in results.points]
    verdicts: dict[Point, dict[str, str]] = {point: {} for point in results.points}
    for pair in against:
        if pair.verdict is not None:
            verdicts[pair.points[0]][pair.method] = pair.verdict
    return [tables.point_table(results, point, verdicts[point]) for point in results.points]


def _reading_notes(
    results: Results,
    leading: Sequence[PairedResult],
    reference: str | None,
    against: Sequence[PairedResult] | None,
    paper: Sequence[paper_tables.PaperCell],
) -> Iterable[str]:
    """How the tables are to be read."""
    if results.cells:
        yield (
            "A score in bold is significantly above the second best of its column, by the test of the pairs with "
            f"Holm's correction {_counts(leading)}."
        )
    if against:
        yield (
            f"Against reference: whether the method beats {reference}, by the test of the pairs with Holm's correction "
            f"{_counts(against)}."
        )
    if paper:
        filled = sum(cell.ours is not None for cell in paper)
        yield (
            f"Beside the paper's numbers: {filled} of {len(paper)} cells of ours are filled; the others, '-', have no "
            "run, or one on another backbone, other weights or other splits than the paper's, or of a language model "
            "by other settings."
        )


def _counts(pairs: Sequence[PairedResult]) -> str:
    """For how many comparisons each family is corrected: those that have a p-value."""
    sizes = [len(pair.points) for pair in pairs if pair.p_value is not None]
    averages = sum(size > 1 for size in sizes)
    parts = {"single points": len(sizes) - averages, "averages": averages}
    counted = ", ".join(f"{key}: {n}" for key, n in parts.items() if n) or "none yet"
    return f"for the number of comparisons ({counted})"


def describe_pair(results: Results, pair: PairedResult) -> str:
    """One line on a pair that has a difference: in points, [bootstrap interval], t interval over seeds, what follows.

    Example: `digits: A - B = +0.4 [-0.3, +1.1], over seeds ± 2.0, p = 0.5: no significant difference (3 seeds, 1.01 x
    parameters)`.
    """
    name = f"{results.scope_title(pair.points)}: {pair.method} - {pair.rival}"
    found = pair.difference
    seeds = f"{len(pair.seeds)} seed{'s' if len(pair.seeds) > 1 else ''}"
    spread = "" if found.over_seeds.half_width is None else f", over seeds ± {100 * found.over_seeds.half_width:.1f}"
    p_value = "" if pair.p_value is None else f", p = {pair.p_value:.2g}"
    parameters = "" if pair.parameter_ratio is None else f", {pair.parameter_ratio:.2f} x parameters"
    interval = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]{spread}{p_value}"
    return f"{name} = {interval}: {pair.verdict} ({seeds}{parameters})"


def print_report(report: Report, console: Console) -> None:
    """Prints tables, notes and verdicts."""
    for table in report.tables:
        print_table(table, console)
    for note in report.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    for line in _pair_lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _pair_lines(report: Report) -> list[str]:
    """The verdicts as a list in Markdown, below a title; nothing where no pair is asked about."""
    if not report.shown_pairs:
        return []
    known = [pair for pair in report.shown_pairs if pair.difference is not None]
    lines = [f"- {describe_pair(report.results, pair)}" for pair in known]
    if lacking := len(report.shown_pairs) - len(known):
        lines.append(f"- {lacking} pairs have no finished runs of both with a common seed.")
    counts = _counts(report.pairs)
    return [f"\n{PAIRS_TITLE.format(counts)}:\n", *lines]


def make_console() -> Console:
    """The standard output; a file or a pipe, which has no width of its own, takes rows of 120 characters."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def print_table(table: TextTable, console: Console) -> None:
    """Prints a table below its title; one that is wider than the console is cut between columns."""
    console.print(f"\n[bold]{table.title}[/bold]", highlight=False, soft_wrap=True)
    for part in table.parts(console.width):
        console.print(to_rich(part))


def write_report(report: Report, directory: Path) -> list[Path]:
    """Writes tables as Markdown, LaTeX and CSV, and the figures for which there are results.

    Args:
        report: The report.
        directory: Folder for the files; made if absent.

    Returns:
        The files written.

    Raises:
        OSError: A file cannot be written; the earlier one of that name is left as it was.
    """
    results = report.results
    beside = f"- {report.points_note}.\n" if report.points_note else ""
    texts = {
        "table.md": f"# Comparison {results.name}\n\n{report_markdown(report)}{beside}",
        "table.tex": "\n".join(map(to_latex, report.tables)),
        "table.csv": to_csv(tables.CSV_COLUMNS, tables.csv_rows(results, report.best)),
    }
    if report.pairs:
        texts["pairs.csv"] = to_csv(PAIR_COLUMNS, _pair_rows(report))
    if report.paper:
        texts["paper.csv"] = to_csv(paper_tables.CSV_COLUMNS, paper_tables.paper_csv_rows(results, report.paper))
    for name, text in texts.items():
        with atomic_file(directory / name) as part:
            part.write_text(text, encoding="utf-8")
    drawn = report.figures
    for name, figure in drawn.items():
        figures.save_figure(figure, directory / f"{name}.png")
    return [directory / name for name in (*texts, *(f"{name}.png" for name in drawn))]


def _pair_rows(report: Report) -> Iterable[Sequence[object]]:
    for pair in report.pairs:
        data = report.results.scope_title(pair.points)
        found = pair.difference
        if found is None:
            numbers = (None,) * 5
        else:
            numbers = (found.mean, found.low, found.high, found.over_seeds.half_width, found.p_value)
        names = (report.results.experiment.name, data, pair.method, pair.rival)
        yield (*names, *numbers, pair.p_value, pair.verdict, len(pair.seeds), pair.parameter_ratio)


def report_markdown(report: Report) -> str:
    """Tables, verdicts and notes as Markdown."""
    sections = [f"**{table.title}**\n\n{to_markdown(table)}" for table in report.tables]
    if lines := _pair_lines(report):
        sections.append("\n".join(lines).lstrip("\n") + "\n")
    sections.append("Notes:\n\n" + "".join(f"- {note}\n" for note in report.notes))
    return "\n".join(sections)
