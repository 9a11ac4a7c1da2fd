"""The fine-tuning command as a whole, on a tiny model and a local file."""

import json
import os
import shutil
import signal
import sys
import types
from pathlib import Path

import pytest
import torch
from launching import launch
from test_objective import plain_loss
from tiny_tuning import command, instruction, make_model, write_json

from commonsense_reasoning import finetune
from commonsense_reasoning.finetuning import planning, progress, tuning
from commonsense_reasoning.finetuning.options import read_options
from commonsense_reasoning.finetuning.planning import plan_tuning
from randlora_core import load_adapter
from randlora_core.models.language_models import build_language_model

TOKENS = torch.arange(40)[None] % 37
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
}
"""What `accelerate launch` leaves in the environment for configs/accelerate/fsdp2.yaml, as far as it counts here."""


@pytest.fixture(scope="module", autouse=True)
def no_gpu():
    """`--device auto` means the CPU here, since Accelerate takes one kind of device in the life of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_json(tmp_path_factory.mktemp("data") / "rows.json", [instruction(number) for number in range(60)])


def record_of(folder):
    return json.loads((folder / "finetune.json").read_text())


def adapter_bytes(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def load_base(folder, bits=None):
    return build_language_model("causal_lm", path=folder, quantize=bits).model


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def check_opens_in_peft(base_folder, folder, bits=None, tolerance=1e-4):
    """PEFT and this library open the adapter alike, and it does something; returns PEFT's model."""
    peft = pytest.importorskip("peft")
    base = logits(load_base(base_folder, bits))
    theirs = peft.PeftModel.from_pretrained(load_base(base_folder, bits), folder).eval()
    ours = load_adapter(load_base(base_folder, bits), folder)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=tolerance, atol=tolerance)
    assert (logits(ours) - base).abs().max() > 20 * tolerance
    return theirs


@pytest.mark.parametrize("others", [["--answer_only"], ["--use_lora", "--gradient-checkpointing"]])
def test_a_run_from_rows_to_an_adapter_of_peft(model, data, tmp_path, others, capsys):
    folder = tmp_path / "out"
    arguments = command(model, data, folder, *others)
    assert finetune.main(arguments) == 0
    peft_model = check_opens_in_peft(model, folder)
    record, held_out = record_of(folder), plan_tuning(read_options([*arguments, "--resume"])).data.validation
    with torch.no_grad():
        loss, count = plain_loss(peft_model, held_out, "answer" if "--answer_only" in others else "full")
    metrics = record["metrics"]
    assert metrics["validation_loss"] == pytest.approx(float(loss) / count, rel=1e-4)
    assert metrics["validation_loss"] == min(loss for _, loss in record["curves"]["validation_loss"])
    assert [step for step, _ in record["curves"]["validation_loss"]] == [2, 4, 6, 7]
    assert record["curves"]["loss"][-1] < record["curves"]["loss"][0] - 0.5 and metrics["steps"] == 7
    assert (record["data"]["train"], record["data"]["validation"]) == (52, 8) and record["format"] == "peft"
    card, printed = (folder / "README.md").read_text(), capsys.readouterr()
    assert f"{metrics['validation_loss']:.4g}" in card and str(data) in card and "library_name: peft" in card
    assert "adapter in PEFT's format" in printed.out and "tokens/s" in printed.err
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]


def full_example(model, data, folder):
    """The complete command line of PEFT's RandLoRA example."""
    return f"""--base_model {model} --data_path {data} --output_dir {folder} --batch_size 1 --num_epochs 3
        --learning_rate 3e-4 --cutoff_len 512 --val_set_size 500 --eval_step 10 --save_step 100 --device auto --rank 32
        --randlora_alpha 640 --randlora_dropout 0.05 --randlora_target_modules k_proj,v_proj""".split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "bits"),
    [
        ([], None),
        (["--sparse"], None),
        (["--very_sparse"], None),
        (["--use_lora"], None),
        (["--quantize"], "4bit"),
        (["--quantize", "--sparse"], "4bit"),
        (["--quantize", "--use_lora"], "4bit"),
        (["--load_8bit"], "8bit"),
    ],
)
def test_the_full_example_of_peft_runs(model, data, tmp_path, others, bits, hub):
    folder = tmp_path / "out"
    pushed = ["--hub_model_id", "me/mine", "--push_to_hub"]
    assert finetune.main([*full_example(model, data, folder), *others, *pushed, "--precision", "fp32"]) == 0
    check_opens_in_peft(model, folder, bits, tolerance=2e-4 if bits != "8bit" else 5e-3)
    assert hub.uploads == [("me/mine", str(folder))]
    record = record_of(folder)
    plain = load_adapter(load_base(model), folder)
    assert record["parameters"]["total"] == sum(parameter.numel() for parameter in plain.parameters())
    assert record["options"]["randlora_alpha"] == 640 and record["metrics"]["steps"] == 9
    assert any("12 rows are held out for validation instead of 500" in remark for remark in record["data"]["remarks"])


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [("rslora", "peft"), ("vera", "peft"), ("dora", "peft"), ("nola", "randlora"), ("randdora", "randlora")],
)
def test_peft_has_some_adapters_and_this_library_all(model, data, tmp_path, adapter, kind, capsys):
    folder = tmp_path / "out"
    assert finetune.main(command(model, data, folder, "--adapter", adapter, "--num_epochs", "0.6")) == 0
    record, printed = record_of(folder), capsys.readouterr().out
    assert record["format"] == kind and record["options"]["adapter"] == adapter
    if kind == "peft":
        check_opens_in_peft(model, folder, tolerance=5e-5)
        return
    assert "PEFT" in record["format_reason"] and "in randlora_core's format (" in printed
    card = (folder / "README.md").read_text()
    assert "randlora_core.load_adapter" not in card and "library_name" not in card
    assert (logits(load_adapter(load_base(model), folder)) - logits(load_base(model))).abs().max() > 1e-4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on_to_the_bit(
    model, data, tmp_path, number, monkeypatch, capsys
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped folder"
    assert finetune.main(command(model, data, whole)) == 0
    update = progress.ProgressBar.update
    with monkeypatch.context() as patch:

        def update_and_stop(bar, step, loss):
            if step == 4:
                os.kill(os.getpid(), number)
            return update(bar, step, loss)

        patch.setattr(progress.ProgressBar, "update", update_and_stop)
        assert finetune.main(command(model, data, stopped)) == 130
    assert not (stopped / "adapter_model.safetensors").exists() and (stopped / "checkpoint-4").is_dir()
    told = capsys.readouterr().err
    assert (
        f"{stopped}/checkpoint-4" in told and f"--output_dir '{stopped}'" in told and told.rstrip().endswith("--resume")
    )

    assert finetune.main(command(model, data, stopped)) == 2  # without --resume it is not overwritten
    assert "has checkpoint-3, checkpoint-4 already" in capsys.readouterr().err
    assert finetune.main(command(model, data, stopped, "--resume", "--learning_rate", "2e-2", "--seed", "3")) == 2
    errors = capsys.readouterr().err
    assert "learning_rate=0.01, not 0.02" in errors and "seed=0, not 3" in errors
    moved = write_json(tmp_path / "moved.json", [instruction(number) for number in range(60)])
    assert finetune.main(command(model, moved, stopped, "--resume", "--save_step", "50")) == 0
    ours, theirs = record_of(stopped), record_of(whole)
    assert ours["curves"] == theirs["curves"] and adapter_bytes(stopped) == adapter_bytes(whole)
    assert "from step 4 on" in capsys.readouterr().out


def test_another_file_of_rows_is_not_resumed_with(model, data, tmp_path, capsys):
    folder = tmp_path / "out"
    assert finetune.main(command(model, data, folder, "--num_epochs", "0.6")) == 0
    other = write_json(tmp_path / "other.json", [instruction(number) for number in range(1, 61)])
    assert finetune.main(command(model, other, folder, "--num_epochs", "0.6", "--resume")) == 2
    assert "belongs to a run with data=" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    """The folder of a run with checkpoint-6 and checkpoint-7, the last one."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert finetune.main(command(model, data, folder)) == 0
    return folder


def cut(path):
    """Takes the end of a file away."""
    path.write_bytes(path.read_bytes()[:280])


@pytest.mark.parametrize("file", ["state.safetensors", "run.json"])
def test_a_damaged_checkpoint_is_named_before_the_model_is_loaded(
    model, data, finished, tmp_path, file, monkeypatch, capsys
):
    folder = shutil.copytree(finished, tmp_path / "out")
    for name in ("finetune.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    cut(folder / "checkpoint-7" / file)
    arguments = command(model, data, folder, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "build_language_model", None)
        assert finetune.main(arguments) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: {folder}/checkpoint-7/{file}: ") and line.count("\n") == 1
        assert line.endswith(f"; delete the folder {folder}/checkpoint-7 to go on from checkpoint-6\n")
        cut(folder / "checkpoint-6" / file)
        assert finetune.main(arguments) == 2
        folders = " and ".join(f"the folder {folder}/checkpoint-{step}" for step in (7, 6))
        assert capsys.readouterr().err.endswith(f"; delete {folders} to start afresh without --resume\n")
    shutil.copy(finished / "checkpoint-6" / file, folder / "checkpoint-6")
    (folder / "checkpoint-7" / file).unlink()  # without it there is no checkpoint-7
    assert finetune.main(arguments) == 0
    assert "from step 6 on" in capsys.readouterr().out
    assert record_of(folder)["curves"] == record_of(finished)["curves"]
    assert adapter_bytes(folder) == adapter_bytes(finished)


def test_a_state_of_another_run_is_no_part_of_a_checkpoint(model, data, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "out")
    other = tmp_path / "other"
    assert finetune.main(command(model, data, other, "--num_epochs", "0.6", "--seed", "1")) == 0
    shutil.copy(next(other.glob("checkpoint-*")) / "state.safetensors", folder / "checkpoint-7")
    assert finetune.main(command(model, data, folder, "--resume")) == 2
    assert "checkpoint-7: state.safetensors is of another run than run.json; delete" in capsys.readouterr().err


def test_a_damaged_record_is_named(model, data, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "out")
    cut(folder / "finetune.json")
    assert finetune.main(command(model, data, folder, "--resume")) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {folder}/finetune.json: it is not JSON (") and line.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["whole", "sharded"])
def test_two_processes_give_the_adapter_of_one(model, data, tmp_path, environment):
    others = ["--randlora_dropout", "0", "--num_epochs", "1"]
    script = Path(__file__).with_name("finetune_in_processes.py")
    output = launch(script, *command(model, data, tmp_path / "two", *others), **environment)
    assert output.count("adapter in PEFT's format") == 1
    assert finetune.main(command(model, data, tmp_path / "one", *others)) == 0
    two, one = record_of(tmp_path / "two"), record_of(tmp_path / "one")
    assert two["curves"]["loss"] == pytest.approx(one["curves"]["loss"], rel=1e-5)
    assert two["metrics"]["validation_loss"] == pytest.approx(one["metrics"]["validation_loss"], rel=1e-5)
    torch.testing.assert_close(
        logits(load_adapter(load_base(model), tmp_path / "two")),
        logits(load_adapter(load_base(model), tmp_path / "one")),
        rtol=1e-4,
        atol=1e-4,
    )


class FakeHub:
    """What the tests need of `huggingface_hub.HfApi`."""

    def __init__(self):
        self.logged_in, self.works, self.uploads, self.patterns = True, True, [], None

    def __call__(self):
        return self

    def whoami(self):
        if not self.logged_in:
            raise OSError("Token is required")

    def create_repo(self, name, exist_ok):
        assert exist_ok
        return types.SimpleNamespace(repo_id=name)

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        if not self.works:
            raise ConnectionError("no network")
        self.uploads.append((repo_id, str(folder_path)))
        self.patterns = allow_patterns


@pytest.fixture
def hub(monkeypatch):
    api = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", api)
    return api


def test_the_adapter_is_pushed_also_after_a_push_that_failed(model, data, tmp_path, hub, capsys, monkeypatch):
    folder = tmp_path / "out"
    arguments = command(model, data, folder, "--num_epochs", "0.6", "--push_to_hub", "--hub_model_id", "me/mine")
    hub.works = False
    assert finetune.main(arguments) == 1
    assert "me/mine could not be uploaded (no network); the adapter is in" in capsys.readouterr().err
    before, hub.works = adapter_bytes(folder), True
    monkeypatch.setattr(finetune, "tune", None)
    assert finetune.main([*arguments, "--resume"]) == 0
    assert hub.uploads == [("me/mine", str(folder))] and adapter_bytes(folder) == before
    assert set(hub.patterns) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "finetune.json"}
    assert "nothing is left to train" in capsys.readouterr().out


BAD = {
    "--push_to_hub --hub_model_id me/mine": "the hub knows no login here (Token is required)",
    "--push_to_hub": "--push_to_hub and --hub_model_id need each other",
    "--randlora_target_modules k_proj,w_proj": "'w_proj'",
    "--rank 33": "rank 33 is above the smaller side of layer",
    "--cutoff_len 513": "accepted: up to 512, the model's limit",
    "--cutoff_len 30": "--cutoff_len 30 cuts off the answers of all 60 rows",
    "--base_model ./nowhere": "./nowhere: there is no such folder",
    "--data_path ./nowhere.json": "./nowhere.json: there is no such file",
    "--resume": "has no checkpoint",
    f"--output_dir {__file__}": f"--output_dir: {__file__}: it is a file; accepted: a folder",
    f"--output_dir {__file__}/out": f"--output_dir: {__file__}/out: {__file__} is a file; accepted: a folder",
}


@pytest.mark.parametrize("others", BAD)
def test_what_can_be_checked_is_checked_before_the_model_is_loaded(
    model, data, tmp_path, others, hub, monkeypatch, capsys
):
    hub.logged_in = False
    monkeypatch.setattr(tuning, "build_language_model", None)
    assert finetune.main(command(model, data, tmp_path / "out", *others.split())) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert BAD[others] in line and not (tmp_path / "out").exists()


def test_every_problem_has_a_line(model, data, tmp_path, hub, capsys):
    hub.logged_in = False
    (tmp_path / "README.md").write_text("mine")
    bad = ["--rank", "40", "--data_path", tmp_path / "none.csv", "--push_to_hub", "--hub_model_id", "me/mine"]
    assert finetune.main(command(model, data, tmp_path, *bad)) == 2
    lines = capsys.readouterr().err.splitlines()
    for text in ("README.md already", "rank 40", "none.csv", "no login"):
        assert sum(text in line for line in lines) == 1, text
    assert (tmp_path / "README.md").read_text() == "mine"


def test_tokens_that_the_model_does_not_have_are_refused(data, tmp_path, monkeypatch, capsys):
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    assert finetune.main(command(folder, data, tmp_path / "out")) == 2
    assert "gives the token" in capsys.readouterr().err


def test_curves_go_to_wandb(model, data, tmp_path, monkeypatch):
    module, logged = types.ModuleType("wandb"), []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)),
        summary={},
        finish=lambda exit_code: logged.append(exit_code),
    )
    module.init, module.Settings = lambda **settings: logged.append(settings) or run, dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert finetune.main(command(model, data, tmp_path / "out", "--tracking", "wandb")) == 0
    settings, *curves, code = logged
    assert code == 0 and settings["config"]["learning_rate"] == 1e-2 and settings["project"] == "randlora"
    record = record_of(tmp_path / "out")
    assert [values["loss"] for _, values in curves if "loss" in values] == record["curves"]["loss"]
    validated = [[step, values["validation_loss"]] for step, values in curves if "validation_loss" in values]
    assert validated == record["curves"]["validation_loss"]
    assert run.summary == record["metrics"]

    def diverge(bar, step, loss):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(progress.ProgressBar, "update", diverge)
    assert finetune.main(command(model, data, tmp_path / "nan", "--tracking", "wandb")) == 1
    assert logged[-1] == 1 and not (tmp_path / "nan" / "finetune.json").exists()


def test_the_plan_knows_names_of_models():
    assert planning.find_base("smollm2_135m") == ("smollm2_135m", None)
    assert planning.find_base("owner/model") == ("causal_lm", "owner/model")
