"""Tables of texts, and how they are drawn: by rich in a terminal, as Markdown, as LaTeX and as CSV.

The texts of a table are made once (`tables`, `paper_tables`); no number is formatted twice.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING = "-"

MARKS = dict(zip("ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", "abcdefghijklmnoprstuvwxyz", strict=True))
"""Raised letters that mark cells, with the letters they raise; Unicode has no raised q."""

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{mark: rf"\textsuperscript{{{letter}}}" for mark, letter in MARKS.items()},
}
"""What LaTeX would take for a command, or does not have in every font, and how it is written."""


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        title: Its title.
        columns: The columns' headings.
        rows: The cells of every row.
        marked: (row, column) of the cells in bold type.
        num_labels: Columns from the left that name the row and are left-aligned; the others are right-aligned.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[tuple[int, int]] = frozenset()
    num_labels: int = 1

    def styled(self, bold: str) -> list[tuple[str, ...]]:
        """The rows, the marked cells put into `bold`, such as "**{}**"."""
        return [
            tuple(bold.format(text) if (row, column) in self.marked else text for column, text in enumerate(cells))
            for row, cells in enumerate(self.rows)
        ]

    def parts(self, width: int) -> list[TextTable]:
        """The table cut into tables of at most `width` characters, each with the labels and one column at least."""
        sizes = [max(len(row[index]) for row in (self.columns, *self.rows)) + 2 for index in range(len(self.columns))]
        chosen: list[list[int]] = [[]]
        for index in range(self.num_labels, len(self.columns)):
            if chosen[-1] and sum(sizes[: self.num_labels]) + sum(sizes[i] for i in (*chosen[-1], index)) > width:
                chosen.append([])
            chosen[-1].append(index)
        return [self._only([*range(self.num_labels), *indices]) for indices in chosen]

    def _only(self, indices: Sequence[int]) -> TextTable:
        def only(cells: Sequence[str]) -> tuple[str, ...]:
            return tuple(cells[index] for index in indices)

        marked = frozenset((row, indices.index(column)) for row, column in self.marked if column in indices)
        return TextTable(self.title, only(self.columns), tuple(map(only, self.rows)), marked, self.num_labels)


def to_rich(table: TextTable) -> RichTable:
    """The table for a terminal, without its title."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index < table.num_labels else "right", overflow="fold")
    for row, cells in enumerate(table.rows):
        styles = ["bold" if (row, column) in table.marked else "" for column in range(len(cells))]
        drawn.add_row(*(Text(text, style=style) for text, style in zip(cells, styles, strict=True)))
    return drawn


def to_markdown(table: TextTable) -> str:
    """The table as GitHub Markdown, without its title."""
    rows = [table.columns, *table.styled("**{}**")]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.columns))]
    rule = ["-" * width if index < table.num_labels else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    lines = [_markdown_row(row, widths, table.num_labels) for row in (rows[0], rule, *rows[1:])]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Sequence[str], widths: Sequence[int], num_labels: int) -> str:
    cells = [
        text.ljust(width) if index < num_labels else text.rjust(width)
        for index, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "| " + " | ".join(cells) + " |"


def to_latex(table: TextTable) -> str:
    r"""The table as a LaTeX float with its title as caption; the preamble needs `\usepackage{booktabs}`."""
    escaped = TextTable(
        escape_latex(table.title),
        tuple(map(escape_latex, table.columns)),
        tuple(tuple(map(escape_latex, row)) for row in table.rows),
        table.marked,
    )
    alignment = "l" * table.num_labels + "r" * (len(table.columns) - table.num_labels)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped.title}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _latex_row(escaped.columns),
        r"\midrule",
        *map(_latex_row, escaped.styled(r"\textbf{{{}}}")),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub("|".join(map(re.escape, LATEX)), lambda match: LATEX[match[0]], text)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Unrounded values as CSV; None is written as `-`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([MISSING if value is None else value for value in row] for row in rows)
    return text.getvalue()
