import json
import shutil

import pytest

from randlora_core.experiment.commands.evaluate import evaluate_run, main
from randlora_core.experiment.running import run

METHODS = {
    "lora": ["adapter=lora", "adapter.rank=2", "adapter.targets=['3']", "training.learning_rate=0.05"],
    "randlora": ["adapter=randlora", "adapter.rank=2", "training.learning_rate=0.05", "seed=3"],
    "full": ["adapter=full", "training.learning_rate=0.05"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tiny_experiment import make_experiment

    return make_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def trained(tiny, folder):
    """A run of each method that kept its weights."""
    more = ["save.adapter=true", "training.steps=8", f"paths.results={folder}"]
    return {name: run(tiny, [*overrides, *more]) for name, overrides in METHODS.items()}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_kept_predicts_what_the_run_predicted(tiny, trained, folder, method):
    record = trained[method]
    found = evaluate_run(tiny, record["run_id"], [f"paths.results={folder}"])
    assert found["test"] == record["scores"]["test"] and found["mean"] == record["scores"]["mean"]
    untouched = run(tiny, ["adapter=zero_shot", f"paths.results={folder}"])
    assert found["test"] != untouched["scores"]["test"]


def test_a_run_is_found_by_its_identity_and_by_its_folder(tiny, trained, folder):
    record = trained["lora"]
    for name in (folder / "tiny" / record["run_id"], folder / "tiny" / record["saved"]):
        assert evaluate_run(tiny, str(name))["test"] == record["scores"]["test"]
    with pytest.raises(ValueError, match=r"^run=0123: no run\.json in .*; accepted: a run that finished with save"):
        evaluate_run(tiny, "0123", [f"paths.results={folder}"])


def test_overrides_change_what_it_is_tested_on(tiny, trained, folder):
    record = trained["full"]
    other = evaluate_run(tiny, record["run_id"], [f"paths.results={folder}", "rule=difference"])
    labels = [scores["test"]["near"]["predictions"]["labels"] for scores in (other, record["scores"])]
    assert labels[0] != labels[1]


def test_the_command_prints_the_scores_and_writes_them_where_asked_to(tiny, trained, folder, tmp_path, capsys):
    record = trained["lora"]
    output = tmp_path / "new" / "scores.json"
    arguments = [f"run={record['run_id']}", f"paths.results={folder}", "--output", str(output)]
    assert main(tiny, arguments) == 0
    near, far = (score["value"] for score in record["scores"]["test"].values())
    assert capsys.readouterr().out.splitlines() == [
        f"near: {100 * near:.2f} % of 40",
        f"far: {100 * far:.2f} % of 40",
        f"mean: {50 * (near + far):.2f} %",
        f"written: {output}",
    ]
    written = json.loads(output.read_text())
    (only,) = written["runs"]
    assert only["scores"]["test"] == record["scores"]["test"] and only["run"] == record["run_id"]
    assert written["overrides"] == [f"paths.results={folder}"]


def test_several_runs_are_scored_one_after_the_other(tiny, trained, folder, tmp_path, capsys):
    output, names = tmp_path / "scores.json", [record["run_id"] for record in trained.values()]
    assert main(tiny, [*(f"run={name}" for name in names), f"paths.results={folder}", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::4] == [
        f"{names[0]}: LoRA-2",
        f"{names[1]}: RandLoRA-2",
        f"{names[2]}: Full fine-tuning",
        f"written: {output}",
    ]
    written = json.loads(output.read_text())["runs"]
    assert [(run["run"], run["scores"]["test"]) for run in written] == [
        (record["run_id"], record["scores"]["test"]) for record in trained.values()
    ]


def test_a_run_that_fails_costs_none_of_those_before_it(tiny, trained, folder, tmp_path, capsys):
    """Files that are missing are found before the first run is scored, damaged ones when their turn comes."""
    damaged, output = tmp_path / "damaged", tmp_path / "scores.json"
    shutil.copytree(folder / "tiny" / trained["lora"]["saved"], damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"nothing")
    first = f"run={trained['randlora']['run_id']}"
    assert main(tiny, [first, "run=nothing", f"paths.results={folder}"]) == 2 and not capsys.readouterr().out
    assert main(tiny, [first, f"run={damaged}", f"paths.results={folder}", "--output", str(output)]) == 2
    (scored,) = json.loads(output.read_text())["runs"]
    assert scored["scores"]["test"] == trained["randlora"]["scores"]["test"]


def test_a_damaged_file_of_a_run_is_named_before_any_is_scored(tiny, trained, folder, tmp_path, capsys):
    weights = shutil.copytree(folder / "tiny" / trained["full"]["saved"], tmp_path / "weights")
    delta, kept = weights / "delta.safetensors", weights / "run.json"
    delta.write_bytes(delta.read_bytes()[:-1])
    assert main(tiny, [f"run={weights}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {delta}: it is damaged or not a safetensors file (")
    kept.write_bytes(kept.read_bytes()[:100])
    assert main(tiny, [f"run={trained['lora']['run_id']}", f"run={weights}", f"paths.results={folder}"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {kept}: it is not JSON (") and printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "0 runs given; accepted: run=ID_OR_FOLDER, once or several times"),
        (
            ["--output", f"{__file__}/new/scores.json"],
            f"--output: {__file__}/new: {__file__} is a file; accepted: a folder",
        ),
        (["run=nothing"], "run=nothing: no run.json in "),
        (["--wrong"], "unrecognized arguments: --wrong; accepted: SETTING=VALUE, --help, --traceback, --output"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny, folder, capsys, arguments, message):
    assert main(tiny, [*arguments, f"paths.results={folder}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_setting_that_does_not_exist_is_refused(tiny, trained, folder, capsys):
    run_id = trained["lora"]["run_id"]
    assert main(tiny, [f"run={run_id}", f"paths.results={folder}", "rul=sum"]) == 2
    assert "unknown setting 'rul' (near: rule)" in capsys.readouterr().err
