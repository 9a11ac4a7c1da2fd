"""Draws a comparison as tables: rich for the terminal, Markdown and CSV for files.

The cells' texts are made once (`overview_tables`, `point_table`) and drawn three ways. A missing value is `-`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from randlora_core.experiment.reports.results import Cell, Point, Results
from randlora_core.experiment.reports.statistics import Summary

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING = "-"
CSV_COLUMNS = (
    "experiment",
    "data",
    "method",
    "test_set",
    "score_mean",
    "score_half_width_95",
    "score_std",
    "runs",
    "trainable_parameters",
    "learning_rate",
    "learning_rate_source",
    "train_seconds_median",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class TextTable:
    """A table of texts; the first column is left-aligned, the others right-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def format_score(summary: Summary | None) -> str:
    """Percent with the half width of the interval: `91.2 ± 0.4`, `91.2` for one run, `-` for none."""
    if summary is None:
        return MISSING
    mean = f"{100 * summary.mean:.1f}"
    return mean if summary.half_width is None else f"{mean} ± {100 * summary.half_width:.1f}"


def overview_tables(results: Results) -> list[TextTable]:
    """The scores alone: methods x points where a point has one test set, else methods x test sets for every point."""
    if all(len(results.test_sets(point)) <= 1 for point in results.points):
        return [_points_table(results)]
    return [_test_sets_table(results, point) for point in results.points]


def _points_table(results: Results) -> TextTable:
    with_average = len(results.points) > 1
    rows = []
    for method in results.methods:
        cells = [results.cell(method, point) for point in results.points]
        row = (method, *(format_score(cell.mean if cell else None) for cell in cells))
        rows.append((*row, format_score(results.average(method))) if with_average else row)
    columns = ("Method", *map(results.title, results.points), *(["Average"] if with_average else []))
    return TextTable("Test accuracy in %, mean ± 95 % interval over seeds", columns, tuple(rows))


def _test_sets_table(results: Results, point: Point) -> TextTable:
    test_sets = results.test_sets(point)
    rows = []
    for method in results.methods:
        cell = results.cell(method, point)
        scores = [cell.score(name) if cell else None for name in test_sets]
        rows.append((method, *map(format_score, scores), format_score(cell.mean if cell else None)))
    title = f"{results.title(point)}: test accuracy in %, mean ± 95 % interval over seeds"
    return TextTable(title, ("Method", *test_sets, "Mean"), tuple(rows))


def point_table(results: Results, point: Point, verdicts: Mapping[str, str] | None = None) -> TextTable:
    """All that is known about the methods at one point.

    Args:
        results: The numbers.
        point: The point.
        verdicts: Method -> how it stands against the comparison's reference, for a last column; None for no column.
    """
    columns = ("Method", "Accuracy %", "Runs", "Trainable", "LR", "Train s", "Peak MB")
    rows = [_point_row(results, method, point) for method in results.methods]
    if verdicts is not None:
        columns = (*columns, "Against reference")
        rows = [(*row, verdicts.get(row[0], MISSING)) for row in rows]
    return TextTable(results.title(point), columns, tuple(rows))


def _point_row(results: Results, method: str, point: Point) -> tuple[str, ...]:
    cell = results.cell(method, point)
    expected = results.expected.get((method, point))
    if cell is None:
        return (method, MISSING, f"0 of {expected}", *[MISSING] * 4)
    count, seconds, peak = len(cell.runs), cell.train_seconds, cell.peak_bytes
    return (
        method,
        format_score(cell.mean),
        str(count) if expected in (None, count) else f"{count} of {expected}",
        f"{cell.trainable:,}",
        _format_rate(cell),
        MISSING if seconds is None else f"{seconds:.1f}",
        MISSING if peak is None else f"{peak / 1e6:,.0f}",
    )


def _format_rate(cell: Cell) -> str:
    rate = cell.learning_rate
    if rate["value"] is None:
        return MISSING
    return f"{rate['value']:g}" + ("" if rate["source"] == "tuned" else "*")


def to_rich(table: TextTable) -> RichTable:
    """The table for a terminal, without its title."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def to_markdown(table: TextTable) -> str:
    """The table as GitHub Markdown, without its title."""
    widths = [max(len(row[index]) for row in (table.columns, *table.rows)) for index in range(len(table.columns))]
    rule = [("-" * width) if index == 0 else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    lines = [_markdown_row(row, widths) for row in (table.columns, tuple(rule), *table.rows)]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        text.ljust(width) if index == 0 else text.rjust(width)
        for index, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "| " + " | ".join(cells) + " |"


def to_csv(results: Results) -> str:
    """One line per point, method and test set with unrounded numbers; a missing value is `-`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for point in results.points:
        for method in results.methods:
            cell = results.cell(method, point)
            for test_set in results.test_sets(point) or ("",):
                values = _csv_values(cell, test_set) if cell else [None] * (len(CSV_COLUMNS) - 4)
                where = [results.experiment.name, results.experiment.describe(point), method, test_set or MISSING]
                writer.writerow([*where, *(MISSING if value is None else value for value in values)])
    return text.getvalue()


def _csv_values(cell: Cell, test_set: str) -> list[object]:
    score, rate = cell.score(test_set), cell.learning_rate
    numbers = [score.mean, score.half_width, score.std, score.count] if score else [None] * 4
    source = None if rate["value"] is None else rate["source"]
    return [*numbers, cell.trainable, rate["value"], source, cell.train_seconds, cell.peak_bytes]
