import shutil

import pytest
from tiny_variants import COMPARISON, ScoredByRate, with_comparison, write_second_experiment

from randlora_core.experiment.commands import execution
from randlora_core.experiment.commands.compare import plan_comparison
from randlora_core.experiment.commands.execution import execute_runs
from randlora_core.experiment.commands.tune import find_searches, main
from randlora_core.experiment.interface import MissingInputError
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.rates import build_config, tuned_rate
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.sweeps.comparison_file import load_comparison

ROWS = """
experiment: tiny
axes: {rule: [sum]}
seeds: [1, 2]
overrides: [training.steps=1]
methods:
  - {overrides: [adapter=zero_shot]}
  - {overrides: [adapter=lora, adapter.rank=2], centre: 1.0e-3}
  - {overrides: [adapter=lora, adapter.rank=3], centre: 1.0e-3}
tuning: {seed: 101, num_values: 5, limit: 9}
"""


@pytest.fixture
def tiny(tmp_path):
    """LoRA-2 is best at 0.001, LoRA-3 at 0.02 and LoRA-5 far beyond any grid."""
    return with_comparison(tmp_path, ROWS, build_task=ScoredByRate)


@pytest.fixture
def tune(tiny, tmp_path):
    return lambda *arguments: main(tiny, ["small", "--jobs", "2", *arguments, f"paths.results={tmp_path / 'results'}"])


def chosen(tiny, rank, *overrides):
    """The committed choice for a row, and the grid it was made from."""
    config = build_config(tiny, ["adapter=lora", f"adapter.rank={rank}", "training.steps=1", *overrides])
    found = tuned_rate(tiny, config, "fp32")
    return None if found is None else (found[0], [entry["value"] for entry in found[1]])


def test_a_grid_is_widened_only_where_the_best_lies_at_an_end(tiny, tune, capsys):
    assert tune() == 0
    shown = capsys.readouterr()
    assert chosen(tiny, 2) == (1e-3, [2e-4, 5e-4, 1e-3, 2e-3, 5e-3])
    assert chosen(tiny, 3) == (0.02, [2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1])
    assert len(read_records(tiny.records / "tuning_small.jsonl")) == 5 + 9
    assert "tuning, round 3" in shown.out and "round 4" not in shown.out and shown.err == ""
    assert f"14 records in {tiny.records}/tuning_small.jsonl" in shown.out
    rows = [" ".join(line.split()) for line in shown.out.splitlines() if line.startswith(" sum, LoRA")]
    assert rows == ["sum, LoRA-2 0.001 100.0 % 5 from 0.0002 to 0.005", "sum, LoRA-3 0.02 100.0 % 9 from 0.0002 to 0.1"]


def test_a_comparison_without_anything_to_tune_says_so(tmp_path, capsys):
    experiment = with_comparison(tmp_path, ROWS.replace(", centre: 1.0e-3", ""), build_task=ScoredByRate)
    assert main(experiment, ["small"]) == 2
    error = "error: small: no row has a learning rate to choose; accepted: another name or scale\n"
    assert capsys.readouterr().err == error


def test_weights_that_cannot_be_had_are_told_in_one_line(tiny, tune, capsys, monkeypatch):
    def no_index(config):
        raise MissingInputError("the package index does not have them")

    monkeypatch.setattr(execution, "fetch_run_weights", no_index)
    assert tune() == 2
    assert capsys.readouterr().err == "error: the package index does not have them\n"
    assert not list(tiny.records.glob("*tuning*"))


def test_a_run_takes_the_rate_that_was_tuned_for_it(tiny, tune):
    untuned = ["adapter=lora", "adapter.rank=3", "training.steps=1"]
    assert plan_run(tiny, untuned).learning_rate.source == "preset"
    assert tune("--methods", "LoRA-3") == 0
    rate = plan_run(tiny, untuned).learning_rate
    assert (rate.value, rate.source, len(rate.grid)) == (0.02, "tuned", 9)
    assert chosen(tiny, 2) is None


def test_where_the_limit_left_the_best_at_an_end_the_table_says_so(tiny, tune, capsys):
    (tiny.configs / "comparison" / "small.yaml").write_text(ROWS.replace("rank=3", "rank=5"))
    assert tune("--methods", "LoRA-5") == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(" sum, LoRA-5"))
    assert "0.1" in row and row.rstrip().endswith("9 from 0.0002 to 0.1, at an end")


def test_the_same_command_takes_up_what_is_left(tiny, tune, capsys):
    assert tune("--methods", "LoRA-2") == 0
    before = read_records(tiny.records / "tuning_small.jsonl")
    capsys.readouterr()
    assert tune() == 0
    assert "10 runs, 5 finished earlier" in capsys.readouterr().out
    after = read_records(tiny.records / "tuning_small.jsonl")
    assert len(after) == 14 and all(record in after for record in before)


def test_tuning_again_replaces_its_setting_and_keeps_the_others(tiny, tune):
    assert tune() == 0
    (tiny.configs / "comparison" / "small.yaml").write_text(ROWS.replace("seed: 101", "seed: 102"))
    assert tune("--methods", "LoRA-2") == 0
    records = read_records(tiny.records / "tuning_small.jsonl")
    seeds = {(record["config"]["adapter"]["label"], record["config"]["seed"]) for record in records}
    assert seeds == {("LoRA-2", 102), ("LoRA-3", 101)} and len(records) == 14


def test_another_number_format_is_another_tuning(tiny, tune):
    assert tune("--methods", "LoRA-2") == 0
    assert tune("--methods", "LoRA-2", "training.precision=bf16") == 0
    assert len(read_records(tiny.records / "tuning_small.jsonl")) == 10


def test_a_trial_changes_no_committed_record(tiny, tune, tmp_path):
    assert tune("--methods", "LoRA-2", "--records", str(tmp_path / "try.jsonl")) == 0
    assert len(read_records(tmp_path / "try.jsonl")) == 5 and not tiny.records.exists()
    assert plan_run(tiny, ["adapter.rank=2", "training.steps=1"]).learning_rate.source == "preset"


def test_a_row_that_takes_the_rates_of_other_settings_is_tuned_on_those(tiny, tune):
    text = ROWS.replace("rank=2], centre: 1.0e-3", "rank=2], centre: 1.0e-3, tuned_on: [rule=difference]")
    (tiny.configs / "comparison" / "small.yaml").write_text(text)
    assert tune("--methods", "LoRA-2") == 0
    records = read_records(tiny.records / "tuning_small.jsonl")
    assert {record["config"]["rule"] for record in records} == {"difference"} and len(records) == 5
    comparison = load_comparison("small", configs=tiny.configs)
    (rate, _) = (entry.learning_rate for entry in plan_comparison(comparison, {"tiny": tiny}, ["LoRA-2"]))
    assert (rate.value, rate.source, rate.tuned_for) == (1e-3, "tuned_otherwise", ("rule=difference",))


def test_rows_that_share_their_settings_are_tuned_once(tiny):
    text = ROWS.replace("axes: {rule: [sum]}", "axes: {rule: [sum, difference]}")
    text = text.replace("rank=2], centre: 1.0e-3", "rank=2], centre: 1.0e-3, tuned_on: [rule=sum]")
    (tiny.configs / "comparison" / "small.yaml").write_text(text)
    searches = find_searches(load_comparison("small", configs=tiny.configs), {"tiny": tiny})["tiny"]
    assert [search.name for search in searches] == ["sum, LoRA-2", "sum, LoRA-3", "difference, LoRA-3"]


def test_tuning_runs_touch_neither_the_test_sets_nor_the_comparisons_seeds(tiny):
    comparison = load_comparison("small", configs=tiny.configs)
    searches = find_searches(comparison, {"tiny": tiny})["tiny"]
    assert len(searches) == 2  # zero-shot has nothing to tune
    assert all({"evaluate.test=false", "seed=101"} <= set(search.overrides) for search in searches)
    compared = {text for _, overrides in comparison.runs("tiny") for text in overrides}
    assert not compared & {"seed=101", "evaluate.test=false"}


def test_committed_tuning_records_are_adopted_where_asked_for(tiny, tune, tmp_path, capsys):
    assert tune("--methods", "LoRA-2") == 0
    shutil.rmtree(tmp_path / "results")
    capsys.readouterr()
    assert tune("--methods", "LoRA-2", "--adopt-records") == 0
    shown = capsys.readouterr().out
    assert "5 committed records adopted" in shown and "5 runs, 5 finished earlier" in shown


def test_what_an_interrupted_tuning_has_finished_is_kept_apart_and_adopted(tiny, tune, tmp_path, capsys, monkeypatch):
    def interrupted(planned, title, **options):
        execute_runs([entry for entry in planned if entry.label == "LoRA-3"][:2], title, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("randlora_core.experiment.commands.tune.execute_runs", interrupted)
        assert tune() == 130
    kept, tuning = tiny.records / "unfinished_tuning_small.jsonl", tiny.records / "tuning_small.jsonl"
    assert len(read_records(kept)) == 2 and not tuning.exists() and chosen(tiny, 3) is None
    shutil.rmtree(tmp_path / "results")
    assert tune("--methods", "LoRA-2", "--adopt-records") == 0
    assert len(read_records(kept)) == 2 and len(read_records(tuning)) == 5
    capsys.readouterr()
    assert tune("--adopt-records") == 0
    assert "2 committed records adopted" in capsys.readouterr().out
    assert not kept.exists() and chosen(tiny, 3)[0] == 0.02 and len(read_records(tuning)) == 14


def test_a_rate_at_which_the_run_fails_is_in_the_records_and_the_rest_goes_on(tiny, tune, capsys):
    """Rank 7 has no best rate in the table of made-up scores, so that every run fails."""
    (tiny.configs / "comparison" / "small.yaml").write_text(ROWS.replace("rank=3", "rank=7"))
    assert tune() == 1
    shown = capsys.readouterr()
    assert shown.err.count("failed: sum LoRA-7 seed 101: KeyError: 7") == 5
    (row,) = (line for line in shown.out.splitlines() if line.startswith(" sum, LoRA-7"))
    assert row.split()[2:] == ["-", "-", "every", "run", "failed"] and chosen(tiny, 2)[0] == 1e-3
    records = read_records(tiny.records / "tuning_small.jsonl")
    assert [record["status"] for record in records].count("failed") == 5
    assert all(record["error"]["traceback"] == "" for record in records if record["status"] == "failed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "Zero-shot"], "unknown method 'Zero-shot'; accepted: LoRA-2, LoRA-3"),
        (
            ["--seeds", "1"],
            "unrecognized arguments: --seeds 1 (did you mean --records, --methods, --rules?); accepted: SETTING=VALUE",
        ),
        (["--rules", "product"], "the rule product is not here"),
        (["rule=sum"], "rule=sum: every run of a comparison has its own; accepted: --rules VALUE ..."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tune, capsys, tmp_path, arguments, message):
    assert tune(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1 and not (tmp_path / "results").exists()


def test_rows_of_another_experiment_are_tuned_into_its_own_records(tmp_path, monkeypatch):
    other = write_second_experiment(tmp_path, "tiny_tuned")
    monkeypatch.syspath_prepend(tmp_path)
    row = "  - {experiment: tiny_tuned, overrides: [adapter=lora, adapter.rank=4], centre: 1.0e-3}\ntuning:"
    text = ROWS.replace("tuning:", row).replace("num_values: 5, limit: 9", "num_values: 3, limit: 3")
    tiny = with_comparison(tmp_path, text, build_task=ScoredByRate)
    assert main(tiny, ["small", "--methods", "LoRA-4", f"paths.results={tmp_path / 'results'}"]) == 0
    assert len(read_records(other.records / "tuning_small.jsonl")) == 3 and not tiny.records.exists()


def test_a_method_without_a_preset_rate_can_be_tuned(tiny, tune):
    row = "rank=2, adapter.learning_rate=null], centre"
    (tiny.configs / "comparison" / "small.yaml").write_text(ROWS.replace("rank=2], centre", row))
    assert tune("--methods", "LoRA-2") == 0
    assert chosen(tiny, 2)[0] == 1e-3


def test_the_grid_of_the_comparison_for_commands_is_valid(tmp_path):
    comparison = load_comparison("small", configs=with_comparison(tmp_path, COMPARISON).configs)
    assert comparison.file.tuning.limit >= comparison.file.tuning.num_values
