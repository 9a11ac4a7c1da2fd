import pytest
from fake_runs import finished_record
from tiny_variants import COMPARISON, with_comparison

from randlora_core.experiment.commands.compare import main
from randlora_core.experiment.commands.dry_run import COLUMNS
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.running import opening


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = COMPARISON.replace("[sum, difference]", "[sum, product]").replace("seeds: [1, 2]", "seeds: [1]")
    return with_comparison(tmp_path, text)


@pytest.fixture
def listed(tiny, tmp_path, capsys):
    """Calls the command and gives its exit code, its table as dictionaries, and what it wrote to standard error."""

    def call(*arguments):
        words = ["small", "--dry-run", "--format=tsv", *arguments, f"paths.results={tmp_path / 'results'}"]
        code, shown = main(tiny, words), capsys.readouterr()
        header, *lines = shown.out.splitlines()
        assert tuple(header.split("\t")) == COLUMNS
        return code, [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines], shown.err

    return call


def planned(tiny, tmp_path, *overrides):
    return plan_run(tiny, ["training.steps=2", "seed=1", *overrides, f"paths.results={tmp_path / 'results'}"])


def test_every_run_is_a_line_and_nothing_else_is_on_standard_output(listed, tmp_path):
    code, lines, messages = listed()
    assert code == 0 and messages == "small: configs/comparison/small.yaml\n" and not (tmp_path / "results").exists()
    assert [(line["dataset"], line["method"], line["rank"], line["lr"], line["status"]) for line in lines] == [
        ("sum", "zero_shot", "", "", "planned"),
        ("sum", "lora", "2", "0.001", "planned"),
        ("sum", "randlora", "2", "0.001", "planned"),
        ("product", "zero_shot", "", "", "missing"),
        ("product", "lora", "2", "0.001", "missing"),
        ("product", "randlora", "2", "0.001", "missing"),
    ]
    assert all(line["backbone"] == "tiny" and line["seed"] == "1" for line in lines)


def test_the_status_is_that_of_the_records(listed, tiny, tmp_path):
    done = planned(tiny, tmp_path, "adapter.rank=2")
    done.ledger.write(finished_record(done))
    failed = planned(tiny, tmp_path, "adapter=randlora", "adapter.rank=2")
    error = {"type": "RuntimeError", "message": "no", "traceback": ""}
    failed.ledger.write({**opening(failed), "error": error, "status": "failed"})
    _, lines, _ = listed("--rules", "sum")
    assert [line["status"] for line in lines] == ["planned", "done", "failed"]


def test_what_does_not_depend_on_the_seed_is_one_line(listed):
    _, lines, _ = listed("--seeds", "1", "2", "3", "--rules", "sum")
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("zero_shot", "1"),
        *(("lora", seed) for seed in "123"),
        *(("randlora", seed) for seed in "123"),
    ]


def test_runs_that_differ_in_no_column_are_told_apart_by_their_labels(listed, tiny):
    row = "  - {overrides: [adapter=lora, adapter.rank=2, adapter.alpha=9, adapter.label=loud], centre: 1.0e-3}\npairs:"
    file = tiny.configs / "comparison" / "small.yaml"
    file.write_text(file.read_text().replace("pairs:", row))
    _, lines, _ = listed("--rules", "sum")
    assert [line["method"] for line in lines] == ["zero_shot", "lora (LoRA-2)", "randlora", "lora (loud)"]


def test_messages_about_adopted_records_are_no_lines(listed):
    _, lines, messages = listed("--adopt-records")
    assert len(lines) == 6 and "0 committed records adopted" in messages


def test_a_table_of_runs_is_one_of_a_dry_run(tiny, capsys):
    assert main(tiny, ["small", "--format=tsv"]) == 2
    assert capsys.readouterr().err == "error: --format=tsv lists runs; accepted: with --dry-run\n"
    assert main(tiny, ["small", "--dry-run", "--format=csv"]) == 2
    assert "--format" in capsys.readouterr().err
