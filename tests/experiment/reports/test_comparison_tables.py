import csv
import io
import re

import numpy as np
import pytest
from fake_experiment import LABELS, make_record
from randlora_core.experiment.comparison import compare_records, contest
from randlora_core.experiment.figures import plot_accuracy_against_parameters
from randlora_core.experiment.predictions import encode_predictions
from randlora_core.experiment.report import (
    describe_contest,
    make_console,
    make_report,
    print_report,
    print_table,
    report_markdown,
    write_report,
)
from randlora_core.experiment.statistics import summarize
from randlora_core.experiment.tables import TextTable, accuracy_table, dataset_table, to_csv, to_markdown
from rich.console import Console

METHODS = ["Zero-shot", "LoRA-4", "RandLoRA-10", "VeRA-256"]


def records():
    """Zero-shot once, LoRA-4 everywhere, RandLoRA-10 with a seed missing on characters, VeRA-256 on digits only."""
    nothing = {
        "parameters": {"trainable": 0, "total": 5000},
        "learning_rate": {"value": None, "source": "none", "grid": []},
    }
    found = [make_record("Zero-shot", dataset, 1, accuracy=0.25, **nothing) for dataset in ("digits", "characters")]
    for seed, accuracy in ((1, 0.7), (2, 0.75), (3, 0.8)):
        found.append(make_record("LoRA-4", "digits", seed, accuracy=accuracy))
        found.append(make_record("LoRA-4", "characters", seed, accuracy=accuracy - 0.2))
        found.append(make_record("RandLoRA-10", "digits", seed, accuracy=accuracy + 0.1, source="preset"))
        found.append(make_record("VeRA-256", "digits", seed, accuracy=0.5))
    found += [make_record("RandLoRA-10", "characters", seed, accuracy=0.5) for seed in (1, 3)]
    found.append(make_record("VeRA-256", "characters", 1, status="failed", error={"type": "E", "message": "m"}))
    return found


@pytest.fixture
def comparison():
    expected = {(method, dataset): 3 for method in METHODS[1:] for dataset in ("digits", "characters")}
    return compare_records(
        "default", records(), methods=METHODS, datasets=["digits", "characters"], expected_seeds=expected
    )


def test_means_and_intervals_are_those_of_the_records(comparison):
    rows = {row[0]: row[1:] for row in accuracy_table(comparison).rows}
    assert list(rows) == METHODS
    half = 100 * summarize([0.7, 0.75, 0.8]).half_width
    assert rows["LoRA-4"] == (f"75.0 ± {half:.1f}", f"55.0 ± {half:.1f}", f"65.0 ± {half:.1f}")
    assert rows["Zero-shot"] == ("25.0", "25.0", "25.0")


def test_a_missing_cell_is_a_dash_and_never_averaged_over(comparison):
    rows = {row[0]: row[1:] for row in accuracy_table(comparison).rows}
    assert rows["VeRA-256"] == ("50.0 ± 0.0", "-", "-")
    assert rows["RandLoRA-10"][1].startswith("50.0") and rows["RandLoRA-10"][2] == "-"  # other seeds than on digits
    details = {row[0]: row[1:] for row in dataset_table(comparison, "characters").rows}
    assert details["VeRA-256"] == ("-",) * 6
    assert details["RandLoRA-10"][1] == "2 of 3"


def test_the_details_of_a_dataset(comparison):
    rows = {row[0]: row[1:] for row in dataset_table(comparison, "digits").rows}
    assert rows["LoRA-4"][1:] == ("3", "1,000", "0.001", "6.0", "100")
    assert rows["RandLoRA-10"][3] == "0.001*"
    assert rows["Zero-shot"][1:] == ("1", "0", "-", "-", "100")


def test_markdown_and_csv_tell_the_same(comparison):
    table = accuracy_table(comparison)
    lines = to_markdown(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + len(METHODS)
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == table.columns and tuple(cells[2:]) == table.rows
    assert re.fullmatch(r"\| -+ \|( -+: \|)+", lines[1])

    rows = {(row["dataset"], row["method"]): row for row in csv.DictReader(io.StringIO(to_csv(comparison)))}
    assert len(rows) == 2 * len(METHODS)
    assert float(rows["digits", "LoRA-4"]["accuracy_mean"]) == pytest.approx(0.75)
    assert rows["digits", "RandLoRA-10"]["learning_rate_source"] == "preset"
    assert set(list(rows["characters", "VeRA-256"].values())[2:]) == {"-"}
    assert rows["digits", "Zero-shot"]["accuracy_half_width_95"] == "-"
    assert rows["digits", "Zero-shot"]["trainable_parameters"] == "0"


def test_two_runs_for_one_cell_are_refused():
    twice = [make_record("LoRA-4", "digits", 1), make_record("LoRA-4", "digits", 1, rate=0.5)]
    with pytest.raises(ValueError, match="LoRA-4 on digits with seed 1"):
        compare_records("default", twice)
    same = make_record("LoRA-4", "digits", 1)
    assert len(compare_records("default", [same, same]).records()) == 1


def test_tuning_records_make_no_cell():
    record = make_record("LoRA-4", "digits", 101)
    record["result"]["test_accuracy"] = None
    assert compare_records("default", [record]).cells == {}


def with_predictions(label, seed, predicted, labels=LABELS):
    accuracy = float(np.mean(predicted == labels))
    return make_record(label, "digits", seed, accuracy=accuracy, predictions=encode_predictions(predicted, labels))


def test_the_verdict_comes_from_paired_predictions():
    """The method is right wherever its rival is and on 8 of 40 samples more; the third on 2 more, but others."""
    rival = np.where(np.arange(40) < 20, LABELS, (LABELS + 1) % 4)
    method = np.where(np.arange(40) < 28, LABELS, (LABELS + 1) % 4)
    mixed = np.where(np.arange(40) >= 18, LABELS, (LABELS + 1) % 4)  # 22 right, but other ones
    rows = {"LoRA-4": rival, "RandLoRA-10": method, "VeRA-256": mixed}
    found = [with_predictions(label, seed, predicted) for label, predicted in rows.items() for seed in (1, 2)]
    for record in found:
        record["parameters"]["trainable"] = 2000 if record["config"]["adapter"]["label"] == "VeRA-256" else 1000
    comparison = compare_records("default", [*found, with_predictions("LoRA-4", 3, rival)])
    won = contest(comparison, "RandLoRA-10", "LoRA-4", "digits")
    assert won.seeds == (1, 2) and won.difference.mean == pytest.approx(0.2) and won.difference.verdict == "better"
    assert contest(comparison, "LoRA-4", "RandLoRA-10", "digits").difference.verdict == "worse"
    drawn = contest(comparison, "VeRA-256", "LoRA-4", "digits")
    assert drawn.difference.mean == pytest.approx(0.05)
    assert describe_contest(drawn).endswith("no significant difference (2 seeds, 2.00 x parameters)")
    assert "= +20.0 [" in describe_contest(won)
    absent = contest(comparison, "DoRA-16", "LoRA-4", "digits")
    assert absent.difference is None and " = - " in describe_contest(absent)


def test_predictions_on_other_samples_are_not_paired():
    records = [with_predictions("A", 1, LABELS), with_predictions("B", 1, LABELS, labels=LABELS[::-1].copy())]
    with pytest.raises(ValueError, match="different samples of digits"):
        contest(compare_records("default", records), "A", "B", "digits")


def test_the_notes_say_what_a_reader_must_know(comparison):
    text = " ".join(make_report(comparison).notes)
    assert "not tuned" in text and "RandLoRA-10 on digits" in text and "from 7 values" in text
    assert "VmHWM" in text and "some CPU, 2 threads" in text and "a" * 12 in text and "uncommitted" not in text
    assert "tiny" in text and "training: 4 steps of 8 in fp32, all training images;" in text


def test_the_notes_say_which_dataset_was_trained_how_long():
    records = [make_record("LoRA-4", dataset, 1) for dataset in ("digits", "letters", "signs")]
    records[1]["config"]["training"] |= {"steps": 9, "precision": "bf16"}
    (note,) = (note for note in make_report(compare_records("two", records)).notes if note.startswith("Backbone"))
    assert "digits, signs 4 steps of 8 in fp32, all training images; letters 9 steps of 8 in bf16, all" in note


def test_subsets_short_classes_and_mixed_machines_are_noted():
    record = make_record("LoRA-4", "flowers", 1, data={"is_subset": True, "short_classes": {"rose": 9, "lily": 10}})
    record["config"]["shots"] = 16
    other = make_record(
        "LoRA-4",
        "flowers",
        2,
        provenance={"commit": None, "dirty": True, "hardware": {"cpu": "B", "gpu": "G", "threads": 1}},
    )
    text = " ".join(make_report(compare_records("few", [record, other])).notes)
    assert "flowers is a subset" in text
    assert "flowers: 2 classes have fewer than 16 training images and gave all (fewest 9)" in text
    assert (
        "not comparable" in text
        and "G, B, 1 thread" in text
        and "1 threads" not in text
        and "unknown with uncommitted changes" in text
    )


def test_the_report_is_printed_and_written(comparison, tmp_path):
    report = make_report(comparison, [("RandLoRA-10", "LoRA-4")])
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    shown = console.file.getvalue()
    assert "RandLoRA-10" in shown and "no significant" not in describe_contest(report.contests[0])
    assert all(describe_contest(result) in shown for result in report.contests)
    paths = write_report(report, tmp_path / "default")
    assert [path.name for path in paths] == ["table.md", "table.csv", "accuracy.png"]
    assert paths[0].read_text() == report_markdown(report)
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "default").iterdir())) == 3


def test_a_narrow_terminal_loses_no_letter(comparison):
    console = Console(file=io.StringIO(), width=40)
    table = TextTable("wide", ("Method of fine-tuning", "Accuracy in percent"), (("RandLoRA-10", "75.125 +- 1.5"),))
    print_table(table, console)
    shown = "".join(console.file.getvalue().split())
    assert "…" not in shown and make_console().width == 120
    for text in ("tuning", "percent", "RandLoRA-10", "75.125"):
        assert text in shown


def test_an_empty_comparison_is_reported_as_such(tmp_path):
    empty = compare_records("default", [], methods=["LoRA-4"], datasets=["digits"])
    paths = write_report(make_report(empty), tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.csv"]
    assert "No finished run" in paths[0].read_text() and "| LoRA-4 |" in paths[0].read_text()
    with pytest.raises(ValueError, match="no finished run"):
        plot_accuracy_against_parameters(empty, tmp_path / "figure.png")
