"""Draws a comparison as tables: rich for the terminal, Markdown and CSV for files.

The cells' texts are made once (`accuracy_table`, `dataset_table`) and drawn three ways. A missing value is `-`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from randlora_core.experiment.comparison import Cell, Comparison
from randlora_core.experiment.statistics import Summary

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING = "-"
CSV_COLUMNS = (
    "dataset",
    "method",
    "accuracy_mean",
    "accuracy_half_width_95",
    "accuracy_std",
    "seeds",
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


def format_accuracy(summary: Summary | None) -> str:
    """Percent with the half width of the interval: `91.2 ± 0.4`, `91.2` for one seed, `-` for none."""
    if summary is None:
        return MISSING
    mean = f"{100 * summary.mean:.1f}"
    return mean if summary.half_width is None else f"{mean} ± {100 * summary.half_width:.1f}"


def accuracy_table(comparison: Comparison) -> TextTable:
    """Methods x datasets, test accuracy in percent, with their average where no dataset is missing."""
    with_average = len(comparison.datasets) > 1
    rows = []
    for method in comparison.methods:
        cells = [comparison.cell(method, dataset) for dataset in comparison.datasets]
        row = [method, *(format_accuracy(cell.accuracy if cell else None) for cell in cells)]
        rows.append((*row, format_accuracy(comparison.average(method))) if with_average else tuple(row))
    columns = ("Method", *comparison.datasets, *(["Average"] if with_average else []))
    return TextTable("Test accuracy in %, mean ± 95 % interval over seeds", columns, tuple(rows))


def dataset_table(comparison: Comparison, dataset: str) -> TextTable:
    """All that is known about the methods on one dataset."""
    columns = ("Method", "Accuracy %", "Seeds", "Trainable", "LR", "Train s", "Peak MB")
    rows = [_dataset_row(comparison, method, dataset) for method in comparison.methods]
    return TextTable(dataset, columns, tuple(rows))


def _dataset_row(comparison: Comparison, method: str, dataset: str) -> tuple[str, ...]:
    cell = comparison.cell(method, dataset)
    if cell is None:
        return (method, *[MISSING] * 6)
    count, expected = len(cell.records), comparison.expected_seeds.get((method, dataset))
    seeds = str(count) if expected in (None, count) else f"{count} of {expected}"
    seconds, peak = cell.train_seconds, cell.peak_bytes
    return (
        method,
        format_accuracy(cell.accuracy),
        seeds,
        f"{cell.trainable:,}",
        _format_rate(cell),
        MISSING if seconds is None else f"{seconds:.1f}",
        MISSING if peak is None else f"{peak / 1e6:,.0f}",
    )


def _format_rate(cell: Cell) -> str:
    if cell.learning_rate is None:
        return MISSING
    return f"{cell.learning_rate:g}" + ("" if cell.learning_rate_source == "tuned" else "*")


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


def to_csv(comparison: Comparison) -> str:
    """One line per dataset and method with unrounded numbers; a missing value is `-`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for dataset in comparison.datasets:
        for method in comparison.methods:
            cell = comparison.cell(method, dataset)
            values = _csv_values(cell) if cell is not None else [None] * (len(CSV_COLUMNS) - 2)
            writer.writerow([dataset, method, *(MISSING if value is None else value for value in values)])
    return text.getvalue()


def _csv_values(cell: Cell) -> list[object]:
    accuracy = cell.accuracy
    source = cell.learning_rate_source if cell.learning_rate is not None else None
    return [
        accuracy.mean,
        accuracy.half_width,
        accuracy.std,
        accuracy.count,
        cell.trainable,
        cell.learning_rate,
        source,
        cell.train_seconds,
        cell.peak_bytes,
    ]
