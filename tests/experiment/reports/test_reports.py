import csv
import dataclasses
import io
import re

import numpy as np
import pytest
from fake_runs import LABELS, finished_record, scores_of
from rich.console import Console

from randlora_core.experiment.interface import Axis
from randlora_core.experiment.planning import plan_run, plan_runs
from randlora_core.experiment.records.predictions import encode_predictions
from randlora_core.experiment.reports.figures import plot_accuracy_against_parameters
from randlora_core.experiment.reports.report import (
    describe_pair,
    make_console,
    make_report,
    print_report,
    print_table,
    report_markdown,
    write_report,
)
from randlora_core.experiment.reports.results import collect_results, compare_pair, find_by_settings
from randlora_core.experiment.reports.statistics import summarize
from randlora_core.experiment.reports.tables import TextTable, overview_tables, point_table, to_csv, to_markdown

METHODS = {
    "Zero-shot": ["adapter=zero_shot"],
    "LoRA-4": ["adapter=lora", "adapter.rank=4"],
    "RandLoRA-10": ["adapter=randlora", "adapter.rank=10"],
    "VeRA-256": ["adapter=vera"],
}
NOT_TUNED = {"value": 0.001, "source": "preset", "tuned_for": [], "grid": []}
NOTHING = {"value": None, "source": "none", "tuned_for": [], "grid": []}
TUNED = {"value": 0.001, "source": "tuned", "tuned_for": [], "grid": [{"value": 0.001, "validation": 0.5}] * 7}
SUM, DIFFERENCE = ("sum",), ("difference",)


def plan(tiny, label, rule, seed, *overrides):
    return plan_run(tiny, [*METHODS[label], f"rule={rule}", f"seed={seed}", *overrides])


def record_of(planned, accuracy=0.75, **changes):
    """A record with one test set unless said otherwise."""
    seed = planned.config.seed
    usual = {
        "learning_rate": TUNED,
        "time": {"train_seconds": 4.0 + seed, "total_seconds": 6.0},
        "memory": {"peak_bytes": 100_000_000 + seed, "counter": "VmHWM"},
        "provenance": {"commit": "a" * 40, "dirty": False, "hardware": {"cpu": "some CPU", "threads": 2, "gpu": None}},
    }
    return finished_record(planned, test=(("test", accuracy),), **{**usual, **changes})


def collect(planned, records, name="default"):
    known = {record["run_id"]: record for record in records}
    return collect_results(name, planned, lambda entry: known.get(entry.run_id))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tiny_experiment import make_experiment

    return make_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def results(tiny):
    """Zero-shot once, LoRA-4 everywhere, RandLoRA-10 without a seed on difference, VeRA-256 on sum only."""
    lists = [
        [*overrides, f"rule={rule}", f"seed={seed}"]
        for rule in ("sum", "difference")
        for overrides in METHODS.values()
        for seed in (1, 2, 3)
    ]
    planned = plan_runs(tiny, lists)
    records = []
    for entry in planned:
        label, rule, seed = entry.label, entry.config.rule, entry.config.seed
        accuracy = (0.7, 0.75, 0.8)[seed - 1] - (0.2 if rule == "difference" else 0)
        if label == "Zero-shot":
            nothing = {"trainable": 0, "total": 5000, "per_layer": {}}
            records.append(record_of(entry, 0.25, parameters=nothing, learning_rate=NOTHING))
        elif label == "LoRA-4":
            records.append(record_of(entry, accuracy))
        elif label == "RandLoRA-10" and rule == "sum":
            records.append(record_of(entry, accuracy + 0.1, learning_rate=NOT_TUNED))
        elif (label == "RandLoRA-10" and seed != 2) or (label == "VeRA-256" and rule == "sum"):
            records.append(record_of(entry, 0.5))
        elif label == "VeRA-256" and seed == 1:
            records.append({**record_of(entry), "status": "failed", "error": {"type": "E", "message": "m"}})
    return collect(planned, records)


def by_method(table):
    return {row[0]: row[1:] for row in table.rows}


def test_means_and_intervals_are_those_of_the_records(results):
    (table,) = overview_tables(results)
    rows = by_method(table)
    assert list(rows) == list(METHODS) and table.columns == ("Method", "sum", "difference", "Average")
    half = 100 * summarize([0.7, 0.75, 0.8]).half_width
    assert rows["LoRA-4"] == (f"75.0 ± {half:.1f}", f"55.0 ± {half:.1f}", f"65.0 ± {half:.1f}")
    assert rows["Zero-shot"] == ("25.0", "25.0", "25.0")


def test_a_missing_cell_is_a_dash_and_never_averaged_over(results):
    rows = by_method(overview_tables(results)[0])
    assert rows["VeRA-256"] == ("50.0 ± 0.0", "-", "-")
    assert rows["RandLoRA-10"][1].startswith("50.0") and rows["RandLoRA-10"][2] == "-"  # other seeds than on sum
    details = by_method(point_table(results, DIFFERENCE))
    assert details["VeRA-256"] == ("-", "0 of 3", "-", "-", "-", "-")
    assert details["RandLoRA-10"][1] == "2 of 3" and results.num_missing == 4


def test_the_details_of_a_point(results):
    rows = by_method(point_table(results, SUM))
    assert rows["LoRA-4"][1:] == ("3", "1,000", "0.001", "6.0", "100")
    assert rows["RandLoRA-10"][3] == "0.001*"
    assert rows["Zero-shot"][1:] == ("1", "0", "-", "-", "100")  # one run stands at all three seeds


def test_markdown_and_csv_tell_the_same(results):
    (table,) = overview_tables(results)
    lines = to_markdown(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + len(METHODS)
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == table.columns and tuple(cells[2:]) == table.rows
    assert re.fullmatch(r"\| -+ \|( -+: \|)+", lines[1])

    rows = {(row["data"], row["method"]): row for row in csv.DictReader(io.StringIO(to_csv(results)))}
    assert len(rows) == 2 * len(METHODS)
    assert float(rows["sum", "LoRA-4"]["score_mean"]) == pytest.approx(0.75)
    assert rows["sum", "LoRA-4"]["test_set"] == "test" and rows["sum", "LoRA-4"]["experiment"] == "tiny"
    assert rows["sum", "RandLoRA-10"]["learning_rate_source"] == "preset"
    assert set(list(rows["difference", "VeRA-256"].values())[4:]) == {"-"}
    assert rows["sum", "Zero-shot"]["score_half_width_95"] == "-"
    assert rows["sum", "Zero-shot"]["trainable_parameters"] == "0"


def test_several_test_sets_have_columns_and_a_mean_only_where_all_are_there(tiny):
    planned = [plan(tiny, label, "sum", seed) for label in METHODS for seed in (1, 2)]
    records = []
    for entry in planned:
        record = record_of(entry)
        test = {"near": 0.5, "far": 1.0} if entry.label != "VeRA-256" else {"near": 0.25}
        record["scores"] = scores_of(test, sets=("near", "far"))
        records.append(record)
    results = collect(planned, records)
    (table,) = overview_tables(results)
    assert table.columns == ("Method", "near", "far", "Mean")
    assert by_method(table)["LoRA-4"] == ("50.0 ± 0.0", "100.0 ± 0.0", "75.0 ± 0.0")
    assert by_method(table)["VeRA-256"] == ("25.0 ± 0.0", "-", "-")
    assert by_method(point_table(results, SUM))["VeRA-256"][0] == "-"
    rows = [(row["method"], row["test_set"]) for row in csv.DictReader(io.StringIO(to_csv(results)))]
    assert rows[:2] == [("Zero-shot", "near"), ("Zero-shot", "far")] and len(rows) == 8


def test_points_are_titled_by_the_axes_on_which_they_differ(tiny):
    shots = Axis("steps", lambda steps: f"{steps} steps")
    two_axes = dataclasses.replace(tiny, axes=(Axis("rule"), shots))
    planned = [plan(tiny, "LoRA-4", "sum", 1)]
    results = dataclasses.replace(
        collect(planned, []), experiment=two_axes, points=(("sum", 4), ("sum", 8)), cells={}, expected={}
    )
    assert [results.title(point) for point in results.points] == ["4 steps", "8 steps"]
    alone = dataclasses.replace(results, points=(("sum", 4),))
    assert alone.title(("sum", 4)) == "sum"


def test_two_different_runs_for_one_cell_are_refused(tiny):
    planned = [plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "LoRA-4", "sum", 1, "training.learning_rate=0.5")]
    with pytest.raises(ValueError, match="two different runs are both sum LoRA-4 seed 1; accepted: one run per"):
        collect(planned, [])
    same = plan(tiny, "LoRA-4", "sum", 1)
    assert len(collect([same, same], [record_of(same)]).records()) == 1


def test_tuning_records_make_no_cell(tiny):
    planned = plan(tiny, "LoRA-4", "sum", 101)
    record = record_of(planned)
    record["scores"] = {"validation": 0.5, "test": {}, "mean": None}
    assert collect([planned], [record]).cells == {}


def test_committed_records_are_found_by_their_settings_alone(tiny):
    planned = plan(tiny, "LoRA-4", "sum", 1)
    elsewhere = dataclasses.replace(planned.identity, data="read elsewhere", weights="other")
    record = {**record_of(planned), "run_id": "0" * 16, "identity": elsewhere.recorded()}
    find = find_by_settings([record, {**record, "status": "failed"}])
    assert find(planned) == record and find(plan(tiny, "LoRA-4", "sum", 2)) is None


def with_predictions(planned, predicted, labels=LABELS):
    record = record_of(planned, float(np.mean(predicted == labels)))
    record["scores"]["test"]["test"]["predictions"] = encode_predictions(predicted, labels)
    return record


def test_the_verdict_comes_from_paired_predictions(tiny):
    """The method is right wherever its rival is and on 8 of 40 samples more; the third on 2 more, but others."""
    rival = np.where(np.arange(40) < 20, LABELS, (LABELS + 1) % 4)
    method = np.where(np.arange(40) < 28, LABELS, (LABELS + 1) % 4)
    mixed = np.where(np.arange(40) >= 18, LABELS, (LABELS + 1) % 4)  # 22 right, but other ones
    rows = {"LoRA-4": rival, "RandLoRA-10": method, "VeRA-256": mixed}
    runs = [(plan(tiny, label, "sum", seed), predicted) for label, predicted in rows.items() for seed in (1, 2)]
    runs.append((plan(tiny, "LoRA-4", "sum", 3), rival))
    found = [with_predictions(*run) for run in runs]
    for record in found:
        record["parameters"] = {"trainable": 2000 if record["config"]["adapter"]["label"] == "VeRA-256" else 1000}
    results = collect([planned for planned, _ in runs], found)
    won = compare_pair(results, "RandLoRA-10", "LoRA-4", SUM)
    assert won.seeds == (1, 2) and won.difference.mean == pytest.approx(0.2) and won.difference.verdict == "better"
    assert compare_pair(results, "LoRA-4", "RandLoRA-10", SUM).difference.verdict == "worse"
    drawn = compare_pair(results, "VeRA-256", "LoRA-4", SUM)
    assert drawn.difference.mean == pytest.approx(0.05)
    assert describe_pair(results, drawn).endswith("no significant difference (2 seeds, 2.00 x parameters)")
    assert describe_pair(results, won).startswith("sum: RandLoRA-10 - LoRA-4 = +20.0 [")
    absent = compare_pair(results, "DoRA-16", "LoRA-4", SUM)
    assert absent.difference is None and " = - " in describe_pair(results, absent)


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


def test_there_is_no_verdict_where_a_test_set_or_its_predictions_are_missing(tiny):
    one, two = plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "VeRA-256", "sum", 1)
    whole, part = record_of(one), record_of(two)
    whole["scores"], part["scores"] = scores_of({"near": 0.5, "far": 1.0}), scores_of({"near": 0.25}, sets=("a", "b"))
    assert compare_pair(collect([one, two], [whole, part]), "LoRA-4", "VeRA-256", SUM).difference is None
    part["scores"] = scores_of({"near": 0.25, "far": 0.5})
    assert compare_pair(collect([one, two], [whole, part]), "LoRA-4", "VeRA-256", SUM).difference is not None
    part["scores"]["test"]["far"]["predictions"] = None
    assert compare_pair(collect([one, two], [whole, part]), "LoRA-4", "VeRA-256", SUM).difference is None


def test_predictions_on_other_samples_are_not_paired(tiny):
    one, two = plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "VeRA-256", "sum", 1)
    records = [with_predictions(one, LABELS), with_predictions(two, LABELS, LABELS[::-1].copy())]
    with pytest.raises(ValueError, match="VeRA-256 were tested on different samples of test"):
        compare_pair(collect([one, two], records), "LoRA-4", "VeRA-256", SUM)


def test_the_notes_say_what_a_reader_must_know(results):
    notes = list(make_report(results).notes)
    text = " ".join(notes)
    assert "* Learning rate not tuned for these settings: RandLoRA-10 on sum." in notes
    assert "from 7 values" in text and notes[0].startswith("4 of 20 runs are not there")
    assert "VmHWM" in text and "some CPU, 2 threads" in text and "a" * 12 in text and "uncommitted" not in text
    assert "sum is made up" not in text and "Backbone tiny; training: 4 steps of 16 in fp32;" in text


def test_the_notes_name_the_settings_that_a_rate_was_tuned_for(tiny):
    planned = plan(tiny, "LoRA-4", "sum", 1)
    rate = {**TUNED, "source": "tuned_otherwise", "tuned_for": ["rule=difference", "training.steps=9"]}
    notes = make_report(collect([planned], [record_of(planned, learning_rate=rate)])).notes
    assert "* Learning rate tuned for rule=difference training.steps=9: LoRA-4 on sum." in notes


def test_the_notes_say_which_point_was_trained_how_long(tiny):
    planned = [plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "LoRA-4", "difference", 1, "training.steps=9")]
    notes = make_report(collect(planned, [record_of(entry) for entry in planned])).notes
    (note,) = (note for note in notes if note.startswith("Backbone"))
    assert "training: sum 4 steps of 16 in fp32; difference 9 steps of 16 in fp32;" in note


def test_remarks_on_the_data_and_mixed_machines_are_noted(tiny):
    one, two = plan(tiny, "LoRA-4", "sum", 1), plan(tiny, "LoRA-4", "sum", 2)
    remarks = {"remarks": ["sum is a subset.", "sum: 2 classes are short."]}
    elsewhere = {"commit": None, "dirty": True, "hardware": {"cpu": "B", "gpu": "G", "threads": 1}}
    records = [record_of(one, data=remarks), record_of(two, data=remarks, provenance=elsewhere)]
    notes = list(make_report(collect([one, two], records)).notes)
    text = " ".join(notes)
    assert notes.count("sum is a subset.") == 1 and notes.count("sum: 2 classes are short.") == 1
    assert "not comparable" in text and "G, B, 1 thread" in text and "1 threads" not in text
    assert "unknown with uncommitted changes" in text


def test_the_report_is_printed_and_written(results, tmp_path):
    report = make_report(results, [("RandLoRA-10", "LoRA-4"), ("RandLoRA-10", "absent")])
    assert len(report.pairs) == 2  # one for each point; the pair without a row is left out
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    shown = console.file.getvalue()
    assert "RandLoRA-10" in shown and "no significant" not in describe_pair(results, report.pairs[0])
    assert all(describe_pair(results, pair) in shown for pair in report.pairs)
    assert all(note in shown for note in report.notes)
    paths = write_report(report, tmp_path / "default")
    assert [path.name for path in paths] == ["table.md", "table.csv", "accuracy.png"]
    assert paths[0].read_text() == f"# Comparison default\n\n{report_markdown(report)}"
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "default").iterdir())) == 3


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
    assert [path.name for path in paths] == ["table.md", "table.csv"]
    assert "1 of 1 runs are not there" in paths[0].read_text() and "| LoRA-4 |" in paths[0].read_text()
    with pytest.raises(ValueError, match="no finished run"):
        plot_accuracy_against_parameters(empty, tmp_path / "figure.png")


def test_a_method_without_a_learning_rate_is_a_line_across_the_figure(results):
    from matplotlib.figure import Figure

    from randlora_core.experiment.reports.figures import _draw_panel

    panel = Figure().subplots()
    handles = _draw_panel(panel, results, SUM)
    assert list(handles) == list(METHODS)
    assert list(handles["Zero-shot"].get_ydata()) == [25.0, 25.0] and handles["Zero-shot"].get_linestyle() == "--"
    (points, _, _) = handles["LoRA-4"].lines
    assert list(points.get_xdata()) == [1000] and list(points.get_ydata()) == [pytest.approx(75.0)]
    assert set(_draw_panel(Figure().subplots(), results, DIFFERENCE)) == set(METHODS) - {"VeRA-256"}
