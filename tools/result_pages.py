"""Writes the README's result tables and the pages of docs/results from the committed records, or checks them.

    python -m tools.result_pages            write tables, pages and figures
    python -m tools.result_pages --check    exit code 1 where a text differs from its records

A table of the README stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`, NAME a file of
configs/comparison; docs/results/NAME.md has all tables, verdicts and notes, docs/results/NAME.png the figure.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from randlora_core.experiment.commands.compare import committed_reports
from randlora_core.experiment.reports.figures import plot_accuracy_against_parameters
from randlora_core.experiment.reports.pages import filled, write_or_check
from randlora_core.experiment.reports.report import Report, report_markdown
from randlora_core.experiment.reports.tables import TextTable, to_markdown
from randlora_core.experiment.sweeps.comparison_file import load_comparison

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"
COMMAND = "python -m tools.result_pages"
MARK = re.compile(r"<!-- table (\w+) -->")


def reports_of(name: str) -> list[Report]:
    """The reports of a comparison's committed records, one for each experiment."""
    comparison = load_comparison(name)
    return committed_reports(comparison, comparison.experiments())


def readme_table(name: str) -> str:
    """The table that the README shows of a comparison: everything on one point, or the scores of all points."""
    return "\n".join(to_markdown(_main_table(report)) for report in reports_of(name))


def _main_table(report: Report) -> TextTable:
    (*_, last) = report.tables
    return last if len(report.results.points) == 1 else report.tables[0]


def page(name: str) -> str:
    """The whole page of a comparison."""
    header = [line.removeprefix("# ") for line in _header(name)]
    sections = [
        f"![accuracy against trainable parameters]({figure_path(report).name})\n\n{report_markdown(report)}"
        for report in reports_of(name)
    ]
    made = f"Made from the committed records of `configs/comparison/{name}.yaml` by `{COMMAND}`."
    return "\n".join([f"# {name}\n", "\n".join(header) + "\n", made + "\n", *sections])


def _header(name: str) -> list[str]:
    """The comment at the top of a comparison's file: its claim and its commands."""
    lines = (ROOT / "configs" / "comparison" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return lines[:end]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    codes = [write_or_check([README], lambda text: filled(text, "table", readme_table), COMMAND, arguments)]
    for name in MARK.findall(README.read_text(encoding="utf-8")):
        path = RESULTS / f"{name}.md"
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            for report in reports_of(name):
                plot_accuracy_against_parameters(report.results, figure_path(report))
        codes.append(write_or_check([path], lambda text, name=name: page(name), COMMAND, arguments))
    return max(codes)


def figure_path(report: Report) -> Path:
    """The figure of a report; a comparison of several experiments has one for each."""
    name = report.results.name
    owner = load_comparison(name).file.experiment
    suffix = "" if report.results.experiment.name == owner else f"_{report.results.experiment.name}"
    return RESULTS / f"{name}{suffix}.png"


if __name__ == "__main__":
    sys.exit(main())
