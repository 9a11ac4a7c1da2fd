"""Writes the README's result tables from the committed records, or checks that they are what the records say.

    python -m vision_language.readme            rewrite the tables
    python -m vision_language.readme --check    exit code 1 where a table differs from its records

A table stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`, NAME a file of configs/comparison.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from randlora_core.experiment.report import describe_contest
from randlora_core.experiment.tables import to_markdown
from vision_language.compare import committed_report
from vision_language.comparisons import load_comparison

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end of table \2 -->)", re.DOTALL)


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
    if not BLOCK.search(text):
        raise ValueError("no table block found; accepted: <!-- table NAME --> ... <!-- end of table NAME -->")
    return BLOCK.sub(lambda match: match[1] + table_block(match[2]) + match[3], text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if unknown := [argument for argument in arguments if argument != "--check"]:
        print(f"error: unknown argument {unknown[0]!r}; accepted: --check", file=sys.stderr)
        return 2
    text = README.read_text(encoding="utf-8")
    fresh = updated(text)
    if "--check" in arguments:
        if fresh != text:
            print(
                "error: README.md differs from the committed records; run python -m vision_language.readme",
                file=sys.stderr,
            )
        return int(fresh != text)
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
