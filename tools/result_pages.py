"""Writes the README's result tables and the pages of docs/results from the committed records, or checks them.

    python -m tools.result_pages            write tables, pages and figures
    python -m tools.result_pages --check    exit code 1 where a text differs from its records

Every comparison with committed records has a page: docs/results/NAME.md has all tables, verdicts and notes,
docs/results/NAME_EXPERIMENT_FIGURE.png the figures. A scale is written behind the name: docs/results/figure3_mini.md.
A table of the README stands between `<!-- table NAME -->` and `<!-- end of table NAME -->`, NAME a file of
configs/comparison, such as default or mini/figure3. docs/results/README.md, which holds the paper's claims against the
results, has the verdicts of a comparison between `<!-- verdicts NAME -->` and `<!-- end of verdicts NAME -->`.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from randlora_core.experiment.commands.compare import committed_reports
from randlora_core.experiment.reports.figures import TITLES, save_figure
from randlora_core.experiment.reports.formats import TextTable, to_markdown
from randlora_core.experiment.reports.pages import filled, write_or_check
from randlora_core.experiment.reports.report import Report, describe_pair, report_markdown
from randlora_core.experiment.sweeps.comparison_file import Comparison, load_comparison
from randlora_core.experiment.sweeps.comparison_names import comparison_names

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"
COMMAND = "python -m tools.result_pages"


def recorded_comparisons() -> list[str]:
    """The comparisons of which there are committed records, by their names in configs/comparison."""
    return [name for name in comparison_names() if _has_records(load_comparison(name))]


def _has_records(comparison: Comparison) -> bool:
    folders = [experiment.records_folder for experiment in comparison.experiments().values()]
    return any((folder / f"{comparison.name}.jsonl").is_file() for folder in folders)


@functools.cache
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


def verdicts(name: str) -> str:
    """A comparison's verdicts as a list: on the averages, or on the point where there is only one."""
    lines = []
    for report in reports_of(name):
        several = len(report.results.points) > 1
        pairs = [pair for pair in report.pairs if pair.difference and (len(pair.points) > 1) == several]
        lines += [f"- {describe_pair(report.results, pair)}\n" for pair in pairs]
    return "".join(lines)


def page(name: str) -> str:
    """The whole page of a comparison."""
    comparison = load_comparison(name)
    header = [line.removeprefix("# ") for line in _header(comparison.path)]
    made = f"Made from the committed records of `configs/comparison/{name}.yaml` by `{COMMAND}`."
    sections = [f"{_images(report)}\n{report_markdown(report)}" for report in reports_of(name)]
    return "\n".join([f"# {comparison.name}\n", "\n".join(header) + "\n", made + "\n", *sections])


def _header(path: Path) -> list[str]:
    """The comment at the top of a comparison's file: its claim and its commands."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return lines[:end]


def _images(report: Report) -> str:
    return "".join(f"![{TITLES[figure]}]({_image(report, figure).name})\n\n" for figure in report.figures)


def _image(report: Report, figure: str) -> Path:
    """The file of a figure; a comparison of several experiments has one for each."""
    return RESULTS / f"{report.results.name}_{report.results.experiment.name}_{figure}.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    codes = [
        write_or_check([README], lambda text: filled(text, "table", readme_table), COMMAND, arguments),
        write_or_check([RESULTS / "README.md"], lambda text: filled(text, "verdicts", verdicts), COMMAND, arguments),
    ]
    for name in recorded_comparisons() if 2 not in codes else ():
        path = RESULTS / f"{load_comparison(name).name}.md"
        if not arguments:
            for report in reports_of(name):
                for figure, drawn in report.figures.items():
                    save_figure(drawn, _image(report, figure))
        codes.append(write_or_check([path], lambda text, name=name: page(name), COMMAND, arguments))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
