"""Writes the README's result tables and the pages of docs/results from the committed records, or checks them.

    python -m tools.result_pages            write tables, pages and figures
    python -m tools.result_pages --check    exit code 1 where a text differs from its records

A table of the README stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`, NAME a file of
configs/comparison, such as default or mini/figure3; docs/results/NAME.md has all tables, verdicts and notes,
docs/results/NAME.png the figure, where a scale is written behind: docs/results/figure3_mini.md.
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
from randlora_core.experiment.sweeps.comparison_file import Comparison, load_comparison

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"
COMMAND = "python -m tools.result_pages"
MARK = re.compile(r"<!-- table ([\w/]+) -->")


def reports_of(comparison: Comparison) -> list[Report]:
    """The reports of a comparison's committed records, one for each experiment."""
    return committed_reports(comparison, comparison.experiments())


def readme_table(name: str) -> str:
    """The table that the README shows of a comparison: everything on one point, or the scores of all points."""
    return "\n".join(to_markdown(_main_table(report)) for report in reports_of(load_comparison(name)))


def _main_table(report: Report) -> TextTable:
    (*_, last) = report.tables
    return last if len(report.results.points) == 1 else report.tables[0]


def page(name: str) -> str:
    """The whole page of a comparison."""
    comparison = load_comparison(name)
    header = [line.removeprefix("# ") for line in _header(comparison.path)]
    sections = [
        f"![accuracy against trainable parameters]({figure_path(comparison, report).name})\n\n{report_markdown(report)}"
        for report in reports_of(comparison)
    ]
    made = f"Made from the committed records of `configs/comparison/{name}.yaml` by `{COMMAND}`."
    return "\n".join([f"# {comparison.name}\n", "\n".join(header) + "\n", made + "\n", *sections])


def _header(path: Path) -> list[str]:
    """The comment at the top of a comparison's file: its claim and its commands."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return lines[:end]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    codes = [write_or_check([README], lambda text: filled(text, "table", readme_table), COMMAND, arguments)]
    for name in MARK.findall(README.read_text(encoding="utf-8")):
        comparison = load_comparison(name)
        path = RESULTS / f"{comparison.name}.md"
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            for report in reports_of(comparison):
                plot_accuracy_against_parameters(report.results, figure_path(comparison, report))
        codes.append(write_or_check([path], lambda text, name=name: page(name), COMMAND, arguments))
    return max(codes)


def figure_path(comparison: Comparison, report: Report) -> Path:
    """The figure of a report; a comparison of several experiments has one for each."""
    experiment = report.results.experiment.name
    suffix = "" if experiment == comparison.file.experiment else f"_{experiment}"
    return RESULTS / f"{comparison.name}{suffix}.png"


if __name__ == "__main__":
    sys.exit(main())
