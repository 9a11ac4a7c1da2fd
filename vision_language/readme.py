"""Writes the README's result tables from the committed records, or checks that they are what the records say.

    python -m vision_language.readme            rewrite the tables
    python -m vision_language.readme --check    exit code 1 where a table differs from its records

A table stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`, NAME a file of configs/comparison.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from randlora_core.experiment.pages import filled, write_or_check
from randlora_core.experiment.report import describe_contest
from randlora_core.experiment.tables import to_markdown
from vision_language.compare import committed_report
from vision_language.comparisons import load_comparison

README = Path(__file__).resolve().parents[1] / "README.md"


def table_block(name: str) -> str:
    """The Markdown of one comparison: its tables, verdicts and notes."""
    report = committed_report(name, load_comparison(name))
    tables = "\n".join(f"**{table.title}**\n\n{to_markdown(table)}" for table in report.tables)
    verdicts = "".join(f"- {describe_contest(result)}\n" for result in report.contests)
    notes = "".join(f"- {note}\n" for note in report.notes)
    return f"{tables}\nDifferences in points, with 95 % intervals:\n\n{verdicts}\nNotes:\n\n{notes}"


def updated(text: str) -> str:
    """`text` with every table block made anew from the committed records.

    Raises:
        ValueError: A block names no comparison, or there is no block at all.
        FileNotFoundError: A block's records are not committed.
    """
    return filled(text, "table", table_block)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return write_or_check([README], updated, "python -m vision_language.readme", arguments)


if __name__ == "__main__":
    sys.exit(main())
