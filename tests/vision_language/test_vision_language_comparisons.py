import importlib
import sys
from pathlib import Path

import pytest
from randlora_core.experiment.ledger import read_records
from randlora_core.experiment.tuning import tuned_learning_rate
from vision_language.comparisons import MethodEntry, TuningPlan, load_comparison

from randlora_core.adapters.targets import find_targets
from randlora_core.models import build_backbone
from randlora_core.models.counts import closest_rank, count_trainable
from vision_language import compare, comparisons, tune

sys.path.append(str(Path(__file__).parents[1] / "experiment"))
fake_experiment = importlib.import_module("fake_experiment")

SMALL = """
datasets: [digits, characters]
seeds: [1, 2]
overrides: [a=1]
methods:
  - {overrides: [label=Zero-shot], seeds: [1]}
  - {overrides: [label=LoRA-4], centre: 1.0e-3}
  - {overrides: [label=RandLoRA-10], centre: 2.0e-3}
pairs:
  - [RandLoRA-10, LoRA-4]
tuning: {seed: 101, num_values: 5, limit: 9}
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A comparison `small` of the stand-in experiment; returns what calls a command on it."""
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.setattr(comparisons, "COMPARISON_FOLDER", tmp_path)
    for module in (compare, tune):
        monkeypatch.setattr(module, "RECORDS_FOLDER", tmp_path / "records")
        monkeypatch.setattr(module, "PRELOAD", ("torch", "randlora_core.experiment.sweep"))
    monkeypatch.setattr(compare, "identify", fake_experiment.identify)
    monkeypatch.setattr(compare, "run", fake_experiment.run)
    return lambda *arguments: compare.main([*arguments, "name=small", f"results={tmp_path}"])


def num_calls(tmp_path):
    file = tmp_path / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_the_command_trains_reports_and_is_its_own_resume(command, tmp_path, capsys):
    assert command("--dry-run") == 0
    shown = capsys.readouterr().out
    assert "10 runs, 0 done; the rest: -, -" in shown and "to do   digits LoRA-4 seed 2  -  -" in shown
    assert num_calls(tmp_path) == 0

    assert command() == 0
    shown = capsys.readouterr()
    assert num_calls(tmp_path) == 10 and "[10/10]" in shown.out and shown.err == ""
    assert "digits: RandLoRA-10 - LoRA-4 = +0.0 [" in shown.out
    folder = tmp_path / "fake" / "small"
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.csv", "accuracy.png"}
    assert "| RandLoRA-10 | 75.0 ± 0.0 |" in (folder / "table.md").read_text()

    assert command("--save-records") == 0
    shown = capsys.readouterr().out
    assert num_calls(tmp_path) == 10 and "10 finished earlier" in shown
    assert len(read_records(tmp_path / "records" / "small.jsonl")) == 10

    assert command("--dry-run", "--jobs", "1", "--seeds", "1", "2", "3") == 0
    shown = capsys.readouterr().out
    assert "14 runs, 10 done; the rest: 0:24, 100 MB" in shown and "done    digits Zero-shot seed 1" in shown


def test_a_part_of_a_comparison(command, tmp_path, capsys):
    assert command("--datasets", "characters", "--methods", "LoRA-4", "Zero-shot", "--seeds", "2") == 0
    names = {(r["config"]["adapter"]["label"], r["config"]["seed"]) for r in read_records(tmp_path / "fake")}
    assert names == {("LoRA-4", 2), ("Zero-shot", 1)}
    assert "| RandLoRA-10" not in (tmp_path / "fake" / "small" / "table.md").read_text()


def test_the_table_of_committed_records_needs_no_training(command, tmp_path, capsys):
    assert command("--save-records", "--seeds", "1") == 0
    before = num_calls(tmp_path)
    capsys.readouterr()
    assert command("--from-records", "--datasets", "digits") == 0
    shown = capsys.readouterr().out
    assert "RandLoRA-10" in shown and "75.0" in shown and "characters" not in shown
    assert num_calls(tmp_path) == before


def test_a_failed_run_makes_the_exit_code_1_and_the_rest_goes_on(command, tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(SMALL.replace("[label=LoRA-4]", "[label=LoRA-4, do=fail]"))
    assert command("--datasets", "digits") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("digits LoRA-4 seed" in line and "not a number" in line for line in lines)
    assert "| LoRA-4      |          - |" in (tmp_path / "fake" / "small" / "table.md").read_text()
    assert num_calls(tmp_path) == 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("name=huge",), "unknown comparison 'huge'; accepted: small"),
        (("--datasets", "nowhere"), "unknown dataset 'nowhere'; accepted: digits"),
        (("dataset=digits",), "dataset=digits: every run of a comparison has its own; accepted: --datasets NAME ..."),
        (("seed=3",), "seed=3: every run of a comparison has its own; accepted: --seeds NUMBER ..."),
        (("--seeds", "101"), "tuning.seed=101 is a seed of the comparison; accepted: any other"),
        (("--methods", "LoRA-5"), "unknown method 'LoRA-5'; accepted: Zero-shot, LoRA-4, RandLoRA-10"),
        (("--jobs", "0"), "jobs=0; accepted: 1 or more"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, capsys, arguments, message):
    assert command(*arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert num_calls(tmp_path) == 0 and not (tmp_path / "fake").exists()


def test_an_interruption_is_exit_code_130(command, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run_sweep", interrupted)
    assert command() == 130
    assert "takes up the rest" in capsys.readouterr().err


def test_arguments_may_come_in_any_order():
    parser = compare.base_parser("x", "")
    command = compare.parse_command(parser, ["--datasets", "digits", "paths.data=/d", "longer", "--jobs", "2"])
    assert command.overrides == ("paths.data=/d",) and command.options.datasets == ["digits", "longer"]
    command = compare.parse_command(parser, ["longer", "paths.data=/d", "--jobs", "2"])
    assert (command.name, command.overrides, command.options.jobs) == ("longer", ("paths.data=/d",), 2)
    assert compare.parse_command(parser, []).name == "default"
    assert compare.parse_command(parser, ["name=longer"]).name == "longer"


def tuned(tmp_path, best, **changes):
    plan = TuningPlan(**{"seed": 101, "num_values": 5, "limit": 9, **changes})
    settings = [
        tune.Setting((f"label={label}", "dataset=digits", "seed=101", f"results={tmp_path}", f"best={value}"), 1e-3)
        for label, value in best.items()
    ]
    functions = (fake_experiment.identify, fake_experiment.score_by_rate)
    return tune.tune(settings, plan, functions=functions)


def chosen(records, label):
    return tuned_learning_rate(records, label=label, dataset="digits", backbone="tiny")


def test_tuning_widens_only_where_the_best_lies_at_an_end(tmp_path, capsys):
    outcomes = tuned(tmp_path, {"LoRA-4": 1e-3, "RandLoRA-10": 0.02})
    path = tmp_path / "tuning_small.jsonl"
    assert tune.merge_records(path, [outcome.record for outcome in outcomes]) == 5 + 9
    records = read_records(path)
    assert chosen(records, "LoRA-4").value == 1e-3 and len(chosen(records, "LoRA-4").grid) == 5
    widened = chosen(records, "RandLoRA-10")
    assert widened.value == 0.02 and widened.interior and len(widened.grid) == 9
    table = tune.choice_table(records)
    assert {row[:4] for row in table.rows} == {
        ("LoRA-4", "digits", "0.001", "100.0"),
        ("RandLoRA-10", "digits", "0.02", "100.0"),
    }
    assert "round 3" in capsys.readouterr().out


def test_tuning_says_where_the_limit_left_the_best_at_an_end(tmp_path):
    outcomes = tuned(tmp_path, {"LoRA-4": 10.0}, limit=6)
    (row,) = tune.choice_table([outcome.record for outcome in outcomes]).rows
    assert row[2] == "0.01" and row[4] == "6 from 0.0002 to 0.01, at an end"


def test_tuning_again_replaces_a_setting_and_keeps_the_others(tmp_path):
    path = tmp_path / "tuning_small.jsonl"
    first = tuned(tmp_path / "a", {"LoRA-4": 1e-3, "RandLoRA-10": 2e-3})
    tune.merge_records(path, [outcome.record for outcome in first])
    second = tuned(tmp_path / "b", {"LoRA-4": 5e-4})
    tune.merge_records(path, [outcome.record for outcome in second])
    records = read_records(path)
    assert (chosen(records, "LoRA-4").value, chosen(records, "RandLoRA-10").value) == (5e-4, 2e-3)


def test_a_trial_of_the_tuning_changes_no_committed_record(command, tmp_path, monkeypatch, capsys):
    functions = (fake_experiment.identify, fake_experiment.score_by_rate)
    monkeypatch.setitem(tune.tune.__kwdefaults__, "functions", functions)
    arguments = ["name=small", f"results={tmp_path}", "best=0.001", "--datasets", "digits", "--methods", "LoRA-4"]
    assert tune.main([*arguments, "--records", str(tmp_path / "try.jsonl")]) == 0
    assert len(read_records(tmp_path / "try.jsonl")) == 5 and not (tmp_path / "records").exists()
    assert tune.main(arguments) == 0
    assert len(read_records(tmp_path / "records" / "tuning_small.jsonl")) == 5


def test_tuning_runs_touch_neither_the_test_split_nor_the_comparisons_seeds():
    for name in ("default", "longer"):
        plan = load_comparison(name)
        settings = tune.tuning_settings(plan)
        assert len(settings) == len(plan.datasets) * (len(plan.methods) - 1)
        assert all("evaluate.test=false" in setting.overrides for setting in settings)
        assert all(f"seed={plan.tuning.seed}" in setting.overrides for setting in settings)
        compared = {text for overrides in plan.run_overrides() for text in overrides}
        assert f"seed={plan.tuning.seed}" not in compared and "evaluate.test=false" not in compared


@pytest.mark.parametrize("name", ["default", "longer"])
def test_the_shipped_comparisons_are_fair(name):
    plan = load_comparison(name)
    assert len(set(plan.seeds)) >= 3 and plan.tuning.num_values >= 3
    (steps,) = [int(text.split("=")[1]) for text in plan.overrides if text.startswith("training.steps=")]
    assert steps >= 20
    assert all(method.centre for method in plan.methods if "adapter=zero_shot" not in method.overrides)
    methods = {
        text.split("=")[1] for method in plan.methods for text in method.overrides if text.startswith("adapter=")
    }
    assert methods == {"zero_shot", "linear_probe", "full", "lora", "rslora", "dora", "vera", "nola", "randlora"}


@pytest.mark.parametrize("name", ["default", "longer"])
def test_the_pairs_have_the_closest_budgets(name):
    """The ranks in the file are the ones whose parameters on the small CLIP come closest to LoRA's."""
    backbone = build_backbone("mini_clip", pretrained=False)
    shapes = find_targets(backbone.model, backbone.default_targets)
    for method, rival in load_comparison(name).pairs:
        budget = count_trainable(shapes, "lora", int(rival.removeprefix("LoRA-")))
        assert method == f"RandLoRA-{closest_rank(shapes, 'randlora', budget)}"
        assert 0.8 < count_trainable(shapes, "randlora", int(method.removeprefix("RandLoRA-"))) / budget < 1.2


def test_a_comparison_file_is_read_strictly(tmp_path, monkeypatch):
    monkeypatch.setattr(comparisons, "COMPARISON_FOLDER", tmp_path)
    (tmp_path / "bad.yaml").write_text(SMALL + "shotz: 4\n")
    with pytest.raises(ValueError, match="shotz"):
        load_comparison("bad")
    (tmp_path / "bad.yaml").write_text(SMALL.replace("seed: 101", "seed: 2"))
    with pytest.raises(ValueError, match=r"tuning\.seed=2"):
        load_comparison("bad")
    (tmp_path / "bad.yaml").write_text(SMALL.replace("[RandLoRA-10, LoRA-4]", "[RandLoRA-10]"))
    with pytest.raises(ValueError, match="pairs"):
        load_comparison("bad")
    (tmp_path / "bad.yaml").write_text(SMALL + "by_dataset: {digit: [training.steps=3]}\n")
    with pytest.raises(ValueError, match=r"by_dataset\.digit: accepted: digits"):
        load_comparison("bad")
    (tmp_path / "bad.yaml").write_text(SMALL)
    plan = load_comparison("bad", overrides=("b=2",))
    assert plan.methods[1] == MethodEntry(("label=LoRA-4",), None, 1e-3)
    assert plan.run_overrides()[0] == ("a=1", "b=2", "label=Zero-shot", "dataset=digits", "seed=1")
    assert len(plan.run_overrides()) == 10


def test_a_dataset_has_settings_of_its_own_and_the_command_line_the_last_word():
    plan = load_comparison("default", overrides=("training.steps=7",))
    for dataset, own in (("digits", ["20", "7"]), ("characters", ["20", "45", "7"])):
        runs = [texts for texts in plan.run_overrides() if f"dataset={dataset}" in texts]
        runs += [s.overrides for s in tune.tuning_settings(plan) if f"dataset={dataset}" in s.overrides]
        assert runs
        for texts in runs:
            assert [text.split("=")[1] for text in texts if text.startswith("training.steps=")] == own
