"""The options of the fine-tuning command, and the page that lists them."""

import dataclasses
import re
from pathlib import Path

import pytest

from commonsense_reasoning.finetuning.options import ADAPTERS, Options, read_options
from commonsense_reasoning.generate import make_generate_parser
from commonsense_reasoning.merge import make_merge_parser
from randlora_core.adapters.lora import LoRAConfig
from randlora_core.adapters.randlora import RandLoRAConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "finetuning.md"


@pytest.fixture(autouse=True)
def processes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_the_defaults_are_those_of_the_source_document():
    options = read_options([])
    assert (options.base_model, options.data_path) == (
        "meta-llama/Meta-Llama-3-8B",
        "timdettmers/openassistant-guanaco",
    )
    assert options.targets == ("k_proj", "v_proj") and options.device == "auto" and options.tracking == "none"
    config = options.adapter_config()
    assert config == RandLoRAConfig(32, dropout=0.05) and config.alpha_or_default == 640
    assert options.bits is None and options.loss_on == "full" and options.accumulate == 16


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["--use_lora"], LoRAConfig(32, dropout=0.05)),
        (["--adapter", "lora", "--use-lora", "--rank", "8"], LoRAConfig(8, dropout=0.05)),
        (["--use_lora", "--randlora_alpha", "64"], LoRAConfig(32, dropout=0.05, alpha=64.0)),
        (["--adapter=rslora"], LoRAConfig(32, dropout=0.05, rank_stabilized=True)),
        (["--sparse", "--seed", "3"], RandLoRAConfig(32, dropout=0.05, basis="sparse", seed=3)),
        (["--very-sparse"], RandLoRAConfig(32, dropout=0.05, basis="very_sparse")),
        (["--adapter", "randdora", "--randlora-dropout", "0"], RandLoRAConfig(32, magnitude=True)),
    ],
)
def test_adapters(arguments, config):
    assert read_options(arguments).adapter_config() == config
    assert LoRAConfig(8).alpha_or_default == 16


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_has_a_configuration(name):
    assert read_options(["--adapter", name]).adapter_config().rank == 32


@pytest.mark.parametrize(("option", "bits"), [("quantize", "4bit"), ("load_4bit", "4bit"), ("load_8bit", "8bit")])
def test_quantisation(option, bits):
    assert read_options([f"--{option}"]).bits == bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rank x", "--rank: invalid int value: 'x'"),
        ("--rank 0", "rank must be an integer of at least 1, got 0"),
        ("--randlora_dropout 1", "dropout must be a number in [0, 1)"),
        ("--randlora_alpha 0", "alpha must be a finite number other than 0"),
        ("--eval_stp 3", "unrecognized arguments: --eval_stp 3 (did you mean --eval_step"),
        ("--use_lora --sparse", "--use_lora and --sparse name different adapters"),
        ("--adapter vera --use_lora", "--adapter and --use_lora name different adapters"),
        ("--adapter vera --randlora_alpha 3", "VeRA has no alpha"),
        ("--adapter lorra", "invalid choice: 'lorra'"),
        ("--quantize --load_8bit", "--load_8bit and --quantize exclude each other"),
        ("--hub_model_id a/b", "--push_to_hub and --hub_model_id need each other"),
        ("--device cuda", "--device='cuda', but torch sees no GPU"),
        ("--randlora_target_modules ,", "names no layer"),
        ("--batch_size 0", "--batch_size 0; accepted: 1 or more"),
        ("--val_set_size -1", "--val_set_size -1; accepted: 0 or more"),
        ("--learning_rate nan", "--learning_rate nan; accepted: a number above 0"),
        ("--num_epochs 0", "--num_epochs 0.0; accepted: a number above 0"),
    ],
)
def test_bad_values_are_named(arguments, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read_options(arguments.split())
    assert len(str(raised.value).splitlines()) == 1


def test_all_bad_values_are_named_at_once():
    with pytest.raises(ValueError) as raised:
        read_options(["--batch_size", "0", "--rank", "-1", "--seed", "-1", "--quantize", "--load_8bit"])
    assert len(str(raised.value).splitlines()) == 4


def test_processes_share_the_micro_batches_of_a_step(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert read_options(["--batch_size", "4"]).accumulate == 4
    with pytest.raises(ValueError, match=r"--batch_size 8 gives 2 micro-batches per step; .* the 4 processes"):
        read_options(["--batch_size", "8"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for arguments, package in ((["--quantize"], "quantization"), (["--tracking", "wandb"], "experiments")):
        with pytest.raises(ValueError, match=rf"randlora\[{package}\]"):
            read_options(arguments)


def test_the_page_has_every_option_with_its_default_and_explanation():
    rows = dict(re.findall(r"^\| `--(\w+)` \| (.* \| .*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    for field in dataclasses.fields(Options):
        default, text = rows.pop(field.name).split(" | ")
        assert text == field.metadata["text"], field.name
        assert default == ("" if field.default in (None, False) else f"`{field.default}`"), field.name
    for parser in (make_generate_parser(), make_merge_parser()):
        for action in parser._actions:
            name = action.option_strings[0].removeprefix("--")
            assert name in ("-h", "traceback") or f"`--{name}`" in PAGE.read_text(encoding="utf-8")
    assert not rows
