import csv
import dataclasses
import io

import numpy as np
import pytest
from fake_runs import LABELS
from made_up import SUM, collect, plan, with_predictions
from rich.console import Console

from randlora_core.experiment.interface import Axis
from randlora_core.experiment.reports.formats import TextTable
from randlora_core.experiment.reports.report import (
    DETAILED_POINTS,
    describe_pair,
    make_console,
    make_report,
    print_report,
    print_table,
    report_markdown,
    write_report,
)


def test_every_row_is_held_against_the_reference(tiny):
    better = np.where(np.arange(40) < 28, LABELS, (LABELS + 1) % 4)
    worse = np.where(np.arange(40) < 20, LABELS, (LABELS + 1) % 4)
    rows = {"LoRA-4": worse, "RandLoRA-10": better}
    runs = [(plan(tiny, label, "sum", seed), predicted) for label, predicted in rows.items() for seed in (1, 2)]
    planned = [*(entry for entry, _ in runs), plan(tiny, "VeRA-256", "sum", 1)]
    results = collect(planned, [with_predictions(*run) for run in runs])
    report = make_report(results, reference="LoRA-4")
    details = report.tables[1]
    assert details.columns[-1] == "Against reference"
    assert {row[0]: row[-1] for row in details.rows} == {"LoRA-4": "-", "RandLoRA-10": "better", "VeRA-256": "-"}
    assert any("beats LoRA-4" in note for note in report.notes)
    without = make_report(results, reference="Linear probe")
    assert "Against reference" not in without.tables[1].columns


def test_the_report_is_printed_and_written(results, tmp_path):
    report = make_report(results, [("RandLoRA-10", "LoRA-4"), ("RandLoRA-10", "absent")])
    assert len(report.pairs) == 3  # at each point and on their average; the pair without a row is left out
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    shown = console.file.getvalue()
    assert "RandLoRA-10" in shown and "no significant" not in describe_pair(results, report.pairs[0])
    known = [pair for pair in report.pairs if pair.difference is not None]
    assert all(describe_pair(results, pair) in shown for pair in known)
    lacking = len(report.pairs) - len(known)
    assert (f"- {lacking} pairs have no finished runs of both with a common seed." in shown) is (lacking > 0)
    assert all(note in shown for note in report.notes)
    paths = write_report(report, tmp_path / "default")
    assert [path.name for path in paths] == [
        "table.md",
        "table.tex",
        "table.csv",
        "pairs.csv",
        "accuracy.png",
        "costs.png",
    ]
    assert paths[0].read_text() == f"# Comparison default\n\n{report_markdown(report)}"
    assert paths[4].read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "default").iterdir())) == 6


def test_a_narrow_terminal_loses_no_letter():
    console = Console(file=io.StringIO(), width=40)
    table = TextTable("wide", ("Method of fine-tuning", "Accuracy in percent"), (("RandLoRA-10", "75.125 +- 1.5"),))
    print_table(table, console)
    shown = "".join(console.file.getvalue().split())
    assert "…" not in shown and make_console().width == 120
    for text in ("tuning", "percent", "RandLoRA-10", "75.125"):
        assert text in shown


def test_an_empty_comparison_is_reported_as_such(tiny, tmp_path):
    empty = collect([plan(tiny, "LoRA-4", "sum", 1)], [])
    paths = write_report(make_report(empty, reference="LoRA-4"), tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.tex", "table.csv"]
    assert "1 of 1 runs are not there" in paths[0].read_text() and "| LoRA-4 |" in paths[0].read_text()
    assert "bold" not in paths[0].read_text() and sorted(tmp_path.iterdir()) == sorted(paths)


def many_points(tiny, results, count):
    """The same cells at so many points of two axes: rule `r<number>` and 4 shots or all."""
    experiment = dataclasses.replace(tiny, axes=(Axis("rule"), Axis("shots", lambda shots: f"{shots} shots")))
    points = tuple((f"r{number}", shots) for shots in (4, None) for number in range(count // 2))
    cells = {(method, point): results.cell(method, SUM) for method in results.methods for point in points}
    expected = {key: frozenset(record["identity"]["settings"] for record in cell.runs) for key, cell in cells.items()}
    return dataclasses.replace(results, experiment=experiment, points=points, cells=cells, expected=expected, rates={})


def test_a_row_stands_only_where_the_comparison_asks_for_it(results):
    """As one of a rank that belongs to another model."""
    difference = results.points[1]
    unasked = ("RandLoRA-10", difference)
    narrowed = dataclasses.replace(
        results,
        cells={key: cell for key, cell in results.cells.items() if key != unasked},
        expected={key: runs for key, runs in results.expected.items() if key != unasked},
    )
    for shown, is_there in ((results, True), (narrowed, False)):
        report = make_report(shown, [("RandLoRA-10", "LoRA-4")], "Zero-shot")
        details = {table.title: [row[0] for row in table.rows] for table in report.tables}
        assert ("RandLoRA-10" in details["difference"]) is is_there and "RandLoRA-10" in details["sum"]
        assert [pair.points[0] for pair in report.pairs if len(pair.points) == 1] == list(shown.points[: 1 + is_there])


def test_a_large_report_shows_averages_and_leaves_the_points_to_the_files(tiny, results, tmp_path):
    small = make_report(many_points(tiny, results, DETAILED_POINTS), [("RandLoRA-10", "LoRA-4")], "Zero-shot")
    assert len(small.shown_pairs) == DETAILED_POINTS + 2 and small.tables[-1].title == "r5, 100 %"
    large = make_report(many_points(tiny, results, DETAILED_POINTS + 2), [("RandLoRA-10", "LoRA-4")], "Zero-shot")
    assert [table.title for table in large.tables] == [
        "Average over data sets: test accuracy in %, mean ± 95 % interval over seeds",
        "4 shots: test accuracy in %, mean ± 95 % interval over seeds",
        "100 %: test accuracy in %, mean ± 95 % interval over seeds",
        "All runs: mean training time and peak memory over 14 points",
    ]
    assert large.tables[1].columns == ("Method", *(f"r{number}" for number in range(7)), "Average")
    assert [describe_pair(large.results, pair).split(":")[0] for pair in large.shown_pairs] == [
        "average of 7, 4 shots",
        "average of 7, 100 %",
    ]
    text = report_markdown(large)
    assert "(single points: 14, averages: 2)" in text and "one by one" not in text  # no file is beside it
    write_report(large, tmp_path)
    written = (tmp_path / "table.md").read_text()
    assert written == f"# Comparison default\n\n{text}- The 14 points one by one: table.csv and pairs.csv.\n"
    without_pairs = make_report(large.results)
    assert without_pairs.points_note == "The 14 points one by one: table.csv" and small.points_note == ""
    rows = list(csv.DictReader((tmp_path / "pairs.csv").open()))
    assert len(rows) == 16 and rows[0]["data"] == "r0, 4 shots" and rows[0]["method"] == "RandLoRA-10"
    assert float(rows[0]["difference"]) == pytest.approx(0.1)
    assert rows[0]["verdict"] == "no significant difference" and rows[-1]["verdict"] == "better"
    alone, corrected = ([float(row[key]) for row in rows] for key in ("p_value", "p_value_corrected"))
    assert alone[0] < 0.05 < corrected[0] == pytest.approx(14 * alone[0]) and corrected[-1] < 0.05
