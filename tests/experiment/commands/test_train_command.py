import dataclasses
import re

import pytest
import yaml
from tiny_experiment import TinyTask
from tiny_variants import FailsWithLora

from randlora_core.experiment.commands.train import main
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.records.ledger import read_records

QUICK = ["adapter.rank=2", "training.steps=2"]


@pytest.fixture
def train(tiny, results):
    """Calls the command of an experiment, the tiny one unless given another."""
    return lambda *arguments, experiment=tiny: main(experiment, [*arguments, results])


def records(tmp_path):
    folder = tmp_path / "results" / "tiny"
    return read_records(folder) if folder.is_dir() else []


def test_a_run_tells_its_rate_before_it_trains_and_its_scores_at_the_end(train, tmp_path, capsys):
    assert train(*QUICK) == 0
    shown = capsys.readouterr()
    (record,) = records(tmp_path)
    lines = shown.out.splitlines()
    assert lines[0] == f"run {record['run_id']}: sum LoRA-2 seed 0"
    assert lines[1] == "learning rate: 0.001 (the method's preset, not tuned for these settings)"
    assert lines[2].startswith("step 1/2  loss ") and lines[3].startswith("step 2/2  loss ")
    near, far = (score["value"] for score in record["scores"]["test"].values())
    for text in (
        "LoRA-2: near ",
        f"near {100 * near:.2f} %",
        f"far {100 * far:.2f} %",
        f"mean {50 * (near + far):.2f} %",
    ):
        assert text in lines[4]
    assert "124 trainable parameters" in lines[4] and "validation" in lines[4]
    assert lines[5] == f"record: {tmp_path}/results/tiny/{record['run_id']}.json" and shown.err == ""

    assert train(*QUICK) == 0
    again = capsys.readouterr().out
    assert "has finished before; delete" in again and "loss" not in again and lines[4] in again


def test_about_ten_lines_of_progress(train, capsys):
    assert train("adapter.rank=2", "training.steps=47") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert 8 <= len(lines) <= 14 and lines[-1].startswith("step 47/47") and "vectors/s" in lines[-1]


def test_several_values_run_once_for_each_combination_and_make_a_table(train, tmp_path, capsys):
    assert train("-m", "adapter.rank=2,3", "seed=1,2", "training.steps=2", "--jobs", "2") == 0
    shown = capsys.readouterr().out
    found = [(record["config"]["adapter"]["rank"], record["config"]["seed"]) for record in records(tmp_path)]
    assert sorted(found) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert "sweep: 4 runs, 0 finished earlier" in shown and "[4/4]" in shown
    table = shown[shown.index("test accuracy in %") :]
    assert "near" in table and "LoRA-2" in table and "LoRA-3" in table and "±" in table

    assert train("-m", "adapter.rank=2,3", "seed=1,2,3", "training.steps=2", "--jobs", "2") == 0
    assert "sweep: 6 runs, 4 finished earlier" in capsys.readouterr().out and len(records(tmp_path)) == 6


def test_rows_are_told_apart_by_whatever_varies(train, tmp_path, capsys):
    assert train("-m", "training.learning_rate=0.01,0.02", "seed=1,2", *QUICK, "--jobs", "2") == 0
    shown = capsys.readouterr().out
    for rate in ("0.01", "0.02"):
        assert f"LoRA-2 training.learning_rate={rate}" in " ".join(shown.split())
    assert {record["config"]["adapter"]["label"] for record in records(tmp_path)} == {"LoRA-2"}


def test_a_run_that_does_not_depend_on_what_varies_is_done_once(train, tmp_path, capsys):
    assert train("-m", "adapter=zero_shot", "seed=1,2,3") == 0
    assert len(records(tmp_path)) == 1 and "sweep: 1 runs" in capsys.readouterr().out


def test_there_is_no_table_of_runs_that_are_not_tested(train, tmp_path, capsys):
    assert train("-m", "seed=1,2", "evaluate.test=false", *QUICK) == 0
    assert "test accuracy" not in capsys.readouterr().out and len(records(tmp_path)) == 2


def test_failed_runs_of_a_sweep_are_told_and_make_exit_code_1(train, tiny, tmp_path, capsys):
    experiment = dataclasses.replace(tiny, build_task=FailsWithLora)
    assert train("-m", "adapter=lora,vera", "training.steps=2", experiment=experiment) == 1
    shown = capsys.readouterr()
    assert (
        len(shown.err.splitlines()) == 1 and "sum LoRA-32 seed 0: RuntimeError: the loss is not a number" in shown.err
    )
    assert "VeRA-256" in shown.out
    assert {record["status"] for record in records(tmp_path)} == {"finished", "failed"}


def test_a_sweep_goes_on_after_a_run_that_diverges_and_says_so_at_its_end(train, tmp_path, capsys):
    settings = ["adapter=full", "training.clip=null", "training.steps=20"]
    assert train("-m", "training.learning_rate=1e30,0.01", *settings, "--jobs", "1") == 1
    shown = capsys.readouterr()
    pattern = r"failed: sum .*: FloatingPointError: the (loss|norm of the gradient) is (nan|inf) at step \d+ with "
    assert re.match(pattern, shown.err) and shown.err.count("\n") == 1
    assert "sweep: 1 of 2 runs are done; 1 failed" in shown.out
    assert sorted(record["status"] for record in records(tmp_path)) == ["failed", "finished"]


def test_the_configuration_can_be_shown_without_training(train, tiny, tmp_path, capsys):
    assert train("--cfg", "job", "adapter.rank=3", "seed=4") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["adapter"]["rank"] == 3 and shown["adapter"]["label"] == "LoRA-3" and shown["seed"] == 4
    assert shown["training"]["batch_size"] == 16 and records(tmp_path) == []
    planned = plan_run(tiny, ["adapter.rank=3", "seed=4"])
    assert shown["training"] == planned.config.model_dump(mode="json")["training"]
    assert train("--cfg", "job", "rule=product") == 0  # nothing has to be here
    assert yaml.safe_load(capsys.readouterr().out)["rule"] == "product"
    assert train("--cfg", "job", "-m", "seed=1,2") == 0
    assert [config["seed"] for config in yaml.safe_load_all(capsys.readouterr().out)] == [1, 2]


def test_help_lists_groups_and_settings(train, capsys):
    with pytest.raises(SystemExit) as stopped:
        train("--help")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    for text in (
        "adapter=dora|full|",
        "backbone=tiny",
        "tracking=none|wandb",
        "batch_size: ",
        "rule: sum",
        "adapter=lora:\n",
        "rank_stabilized: ",
        "--cfg",
        "-m",
    ):
        assert text in shown
    assert "comparison=" not in shown


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rul=sum"], ["unknown setting 'rul' (near: rule)"]),
        (["rule=products"], ["unknown rule 'products'; accepted: sum, difference"]),
        (["rule=product"], ["the rule product is not here"]),
        (["-m", "rule=product,sum"], ["the rule product is not here"]),
        (["adapter=lorra"], ["unknown choice adapter=lorra; accepted: dora, "]),
        (["seed=1,2"], ["seed=1,2: several values; accepted: one, or all of them as a sweep with -m"]),
        (
            ["--dry-run"],
            ["unrecognized arguments: --dry-run (", "; accepted: SETTING=VALUE, --help, --traceback, --multirun"],
        ),
        (["--cfg", "all"], ["argument --cfg: invalid choice: 'all'"]),
        (["-m", "--jobs", "0"], ["jobs=0; accepted: 1 or more"]),
        (["--jobs", "2"], ["--jobs 2 has no effect on a single run; accepted: with -m"]),
        (["--executor", "slurm"], ["--executor slurm has no effect on a single run; accepted: with -m"]),
        (["-m", "--executor", "cloud"], ["executor=cloud; accepted: local, slurm, or a YAML file like "]),
        (["adapter.targets=[nothing]"], ["nothing"]),
        (["+training.colour=red"], ["unknown setting 'training.colour'"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(train, capsys, tmp_path, arguments, parts):
    assert train(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in parts:
        assert part in error
    assert all(record["status"] == "failed" for record in records(tmp_path))


def test_every_mistake_of_a_configuration_has_a_line(train, capsys):
    assert train("seed=-1", "training.steps=0", "device=tpu") == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_run_that_fails_has_exit_code_1_and_shows_its_traceback_where_asked_for(train, tiny, capsys):
    experiment = dataclasses.replace(tiny, build_task=FailsWithLora)
    assert train(*QUICK, experiment=experiment) == 1
    assert capsys.readouterr().err == "error: RuntimeError: the loss is not a number\n"
    assert train(*QUICK, "--traceback", experiment=experiment) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "tiny_variants.py" in shown


def test_an_interruption_is_exit_code_130(train, tiny, capsys, tmp_path):
    class Interrupted(TinyTask):
        def batches(self, count, size):
            raise KeyboardInterrupt

    assert train(*QUICK, experiment=dataclasses.replace(tiny, build_task=Interrupted)) == 130
    assert "the same command goes on from the last saved state" in capsys.readouterr().err and records(tmp_path) == []
