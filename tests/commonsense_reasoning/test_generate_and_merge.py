"""A tuned model answers a prompt, and becomes a plain model of transformers."""

import json
import shutil

import pytest
import torch
from tiny_tuning import command, instruction, make_model, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer

from commonsense_reasoning import finetune, generate, merge
from commonsense_reasoning.finetuning.encoding import encode_prompt
from randlora_core import load_adapter

TOKENS = torch.arange(40)[None] % 37
QUESTION = "Which is heavier, river or needle?"


@pytest.fixture(scope="module", autouse=True)
def no_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr("randlora_core.experiment.loop.hardware.multiplies_bf16", lambda device: False)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """The folder of an adapter that changes the model's answers."""
    folder = tmp_path_factory.mktemp("tuned")
    data = write_json(folder / "rows.json", [instruction(number) for number in range(60)])
    assert finetune.main(command(model, data, folder / "out", "--num_epochs", "4")) == 0
    return folder / "out"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def greedy(model, prompt, count, end):
    """The most likely continuation, by a plain loop."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == end:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", ["instruction", "text", "chat"])
def test_a_tuned_model_answers_in_the_form_of_its_training(model, tuned, tmp_path, kind, capsys):
    folder = shutil.copytree(tuned, tmp_path / "copy")
    record = json.loads((folder / "finetune.json").read_text())
    (folder / "finetune.json").write_text(json.dumps({**record, "kind": kind}))
    assert generate.main(["--model", str(folder), "--prompt", QUESTION, "--max_new_tokens", "6"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = encode_prompt(kind, QUESTION, "", tokenizer)
    expected = greedy(load_adapter(load(model), tuned), prompt, 6, tokenizer.eos_token_id)
    assert expected != greedy(load(model), prompt, 6, tokenizer.eos_token_id)
    printed = capsys.readouterr().out.strip()
    assert printed == tokenizer.decode(expected, skip_special_tokens=True).strip()
    if kind == "instruction":
        arguments = ["--model", str(folder), "--prompt", QUESTION, "--max_new_tokens", "6", "--form", "text"]
        assert generate.main(arguments) == 0 and capsys.readouterr().out.strip() != printed


def test_an_adapter_of_peft_is_tried_too(model, tuned, tmp_path, capsys):
    folder = tmp_path / "peft"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tuned / name, folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = ["--prompt", QUESTION, "--max_new_tokens", "4", "--form", "text"]
    assert generate.main(["--model", str(folder), *plain]) == 0
    prompt = encode_prompt("text", QUESTION, "", tokenizer)
    expected = greedy(load_adapter(load(model), tuned), prompt, 4, tokenizer.eos_token_id)
    assert capsys.readouterr().out.strip() == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert expected != greedy(load(model), prompt, 4, tokenizer.eos_token_id)
    arguments = ["--prompt", QUESTION, "--max_new_tokens", "4", "--temperature", "1", "--num_beams", "2"]
    assert generate.main(["--model", str(folder), *arguments]) == 0
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert generate.main(["--model", str(folder), *arguments]) == 2
    assert "names no base model; accepted: with --base_model" in capsys.readouterr().err
    assert generate.main(["--model", str(folder), *arguments, "--base_model", str(model)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model nowhere --prompt x", "--model nowhere: there is no adapter_config.json"),
        ("--model nowhere", "the following arguments are required: --prompt"),
        ("--model nowhere --prompt x --load_4bit --load_8bit", "exclude each other"),
        ("--model nowhere --prompt x --num_beams 0", "--num_beams 0; accepted: 1 or more"),
        ("--model nowhere --prompt x --temperature -1", "--temperature -1.0; accepted: 0 or more"),
    ],
)
def test_bad_options_of_generate(arguments, message, capsys):
    assert generate.main(arguments.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("file", ["finetune.json", "adapter_config.json"])
def test_a_damaged_file_is_named(tuned, tmp_path, file, capsys):
    folder = shutil.copytree(tuned, tmp_path / "copy")
    (folder / file).write_bytes((folder / file).read_bytes()[:280])
    for program, others in ((generate, ["--prompt", "x"]), (merge, ["--output_dir", str(tmp_path / "merged")])):
        assert program.main(["--model", str(folder), *others]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: {folder / file}: it is not JSON (") and line.count("\n") == 1
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_is_a_plain_one_of_transformers(model, tuned, tmp_path, dtype, capsys):
    folder = tmp_path / "new" / "merged"
    assert merge.main(["--model", str(tuned), "--output_dir", str(folder), "--dtype", dtype]) == 0
    merged, adapted = load(folder), load_adapter(load(model), tuned)
    assert merged.state_dict().keys() == load(model).state_dict().keys()
    tolerance = 1e-4 if dtype == "float32" else 0.2  # the base's weights are rounded, too
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=tolerance, atol=tolerance)
    assert (logits(merged) - logits(load(model))).abs().max() > 5 * tolerance
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert AutoTokenizer.from_pretrained(folder)(QUESTION) == AutoTokenizer.from_pretrained(model)(QUESTION)
    assert f"rounding to {dtype} changed" in capsys.readouterr().out


def test_a_merge_leaves_what_is_there_and_nothing_half_written(tuned, tmp_path, monkeypatch, capsys):
    assert merge.main(["--model", str(tuned), "--output_dir", str(tmp_path)]) == 2
    assert "exists already; accepted: a new folder" in capsys.readouterr().err
    assert merge.main(["--model", str(tuned), "--output_dir", f"{__file__}/merged"]) == 2
    assert f"--output_dir: {__file__}/merged: {__file__} is a file" in capsys.readouterr().err

    def fail(model, folder):
        folder.mkdir(parents=True)
        raise OSError("disk full")

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", fail)
    assert merge.main(["--model", str(tuned), "--output_dir", str(tmp_path / "merged")]) == 1
    assert "disk full" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
