import csv
import dataclasses
import io
import re

import pytest
from fake_runs import scores_of
from made_up import DIFFERENCE, METHODS, SUM, by_method, collect, on_machine, plan, record_of

from randlora_core.experiment.interface import Axis
from randlora_core.experiment.reports.formats import MARKS, to_csv, to_latex, to_markdown
from randlora_core.experiment.reports.notes import make_notes
from randlora_core.experiment.reports.results import find_by_settings
from randlora_core.experiment.reports.statistics import summarize
from randlora_core.experiment.reports.tables import CSV_COLUMNS, csv_rows, overview_tables, point_table


def read_csv(results, best=None):
    return list(csv.DictReader(io.StringIO(to_csv(CSV_COLUMNS, csv_rows(results, best or {})))))


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
    assert details["VeRA-256"] == ("-", "-", "0 of 3", "-", "-", "-", "-")
    assert details["RandLoRA-10"][2] == "2 of 3" and results.num_missing == 4


def test_the_details_of_a_point(results):
    rows = by_method(point_table(results, SUM))
    assert rows["LoRA-4"][1:] == ("5.0", "3", "1,000", "0.001", "6.0", "100")  # 70, 75 and 80 %
    assert rows["RandLoRA-10"][4] == "0.001*"
    assert rows["Zero-shot"][1:] == ("-", "1", "0", "-", "-", "100")  # one run stands at all three seeds


def test_costs_of_two_machines_are_marked_and_the_title_names_the_machines(tiny):
    """Zero-shot trains nothing: a missing cell has no mark. LoRA-4 on difference is alone, and its table as ever."""
    planned = [plan(tiny, label, "sum", 1) for label in ("Zero-shot", "LoRA-4", "RandLoRA-10")]
    planned.append(plan(tiny, "LoRA-4", "difference", 1))
    nothing = {"parameters": {"trainable": 0}}
    records = [
        record_of(planned[0], **on_machine("A"), **nothing),
        record_of(planned[1], **on_machine("B", "cuda")),
        *(record_of(entry, **on_machine("A")) for entry in planned[2:]),
    ]
    table = point_table(collect(planned, records), SUM)
    rows = {method: row[5:] for method, row in by_method(table).items()}
    assert rows == {"Zero-shot": ("-", "100ᵃ"), "LoRA-4": ("5.0ᵇ", "100ᵇ"), "RandLoRA-10": ("5.0ᵃ", "100ᵃ")}
    machines = "ᵃ A, 2 threads, memory by VmHWM; ᵇ B, 2 threads, memory by cuda"
    assert table.title == f"sum (Train s and Peak MB: {machines})"
    latex = to_latex(table)
    assert r"5.0\textsuperscript{b}" in latex and r"\textsuperscript{a} A, 2 threads" in latex
    assert not set(MARKS) & set(latex)
    alone = point_table(collect(planned, records), DIFFERENCE)
    assert alone.title == "difference" and by_method(alone)["LoRA-4"][5:] == ("5.0", "100")


def test_a_mark_is_there_for_every_machine(tiny):
    """Also for more machines than there are raised letters."""
    runs = [plan(tiny, "LoRA-4", "sum", 1, f"adapter.rank={rank}") for rank in range(1, 2 + len(MARKS))]
    table = point_table(collect(runs, [record_of(entry, **on_machine(entry.label)) for entry in runs]), SUM)
    costs = [row[6].removeprefix("5.0") for row in table.rows]
    assert costs == [*MARKS, "ᵃᵃ"] and f"ᵃᵃ LoRA-{len(runs)}, 2 threads" in table.title


def test_seeds_of_two_machines_have_no_time_and_memory_in_common(tiny):
    planned = [plan(tiny, label, "sum", seed) for label in ("LoRA-4", "RandLoRA-10") for seed in (1, 2)]
    machines = ("A", "B", "A", "A")
    records = [record_of(entry, **on_machine(name)) for entry, name in zip(planned, machines, strict=True)]
    results = collect(planned, records)
    rows = {method: row[5:] for method, row in by_method(point_table(results, SUM)).items()}
    assert rows == {"LoRA-4": ("-", "-"), "RandLoRA-10": ("5.5", "100")}
    assert {row["method"]: row["train_seconds_median"] for row in read_csv(results)} == {
        "LoRA-4": "-",
        "RandLoRA-10": "5.5",
    }
    (note,) = (note for note in make_notes(results) if note.startswith("Hardware"))
    assert note.endswith("They are '-' where the seeds of a row ran on several.")
    (note,) = (note for note in make_notes(collect(planned, records[2:])) if note.startswith("Hardware"))
    assert note == "Hardware: A, 2 threads."


def test_markdown_and_csv_tell_the_same(results):
    (table,) = overview_tables(results)
    lines = to_markdown(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + len(METHODS)
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == table.columns and tuple(cells[2:]) == table.rows
    assert re.fullmatch(r"\| -+ \|( -+: \|)+", lines[1])

    rows = {(row["data"], row["method"]): row for row in read_csv(results)}
    assert len(rows) == 2 * len(METHODS)
    assert float(rows["sum", "LoRA-4"]["score_mean"]) == pytest.approx(0.75)
    assert float(rows["sum", "LoRA-4"]["score_std"]) == pytest.approx(0.05)
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
    rows = [(row["method"], row["test_set"]) for row in read_csv(results)]
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
