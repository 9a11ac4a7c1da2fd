"""Adapters under transformers.Trainer, and the example of docs/examples."""

import importlib.util
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import batch, logits, targets_of, tiny_model
from transformers import Trainer, TrainingArguments

from randlora_core import adapter_parameters, import_peft, inject_adapter, make_config

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "randlora_with_trainer.py"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found missing adapter keys"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Rows(torch.utils.data.Dataset):
    """The rows of the tiny language models' batch, with labels."""

    def __init__(self) -> None:
        self.ids = batch("qwen2")["input_ids"].repeat(4, 1)
        self.ids[3:] = self.ids[3:].flip(1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def trainer(model, directory, **options) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=6,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows())


def adapted(method: str):
    config = make_config(method, rank=4, **({"dropout": 0.2} if method == "lora" else {}))
    return inject_adapter(tiny_model("qwen2"), config, targets_of("qwen2"), trainable=("model.norm",))


@pytest.mark.parametrize("method", ["randlora", "lora", "dora"])
def test_an_injected_model_trains_checkpoints_and_resumes(method, tmp_path):
    model = adapted(method)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = [parameter.detach().clone() for parameter in adapter_parameters(model)]
    trainer(model, tmp_path, save_strategy="steps", save_steps=3).train()
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    changed = [not torch.equal(a, b) for a, b in zip(start, adapter_parameters(model), strict=True)]
    assert all(changed)

    torch.manual_seed(99)
    resumed = adapted(method)
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for (name, expected), found in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert torch.equal(logits(resumed, "qwen2"), logits(model, "qwen2"))


def test_an_adapter_that_peft_trained_imports(tmp_path):
    torch.manual_seed(0)
    config = peft.RandLoraConfig(r=4, randlora_alpha=80, target_modules=list(targets_of("qwen2")))
    model = peft.get_peft_model(tiny_model("qwen2"), config)
    untrained = logits(model, "qwen2")
    trainer(model, tmp_path / "trainer", save_strategy="steps", save_steps=6).train()
    expected = logits(model, "qwen2")
    assert not torch.allclose(expected, untrained, atol=1e-2)
    imported = import_peft(tiny_model("qwen2"), tmp_path / "trainer" / "checkpoint-6")
    torch.testing.assert_close(logits(imported, "qwen2"), expected, rtol=1e-4, atol=2e-5)


def test_the_example_learns_with_this_library_and_with_pefts_tuner(tmp_path):
    spec = importlib.util.spec_from_file_location("randlora_with_trainer", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    size = len(example.make_tokenizer())
    before = example.loss_of(example.make_model(size))
    assert example.loss_of(example.with_this_library(tmp_path / "ours", steps=20)) < 0.7 * before
    assert example.loss_of(example.with_pefts_tuner(tmp_path / "theirs", steps=20)) < 0.7 * before
    opened = peft.PeftModel.from_pretrained(example.make_model(size), tmp_path / "ours" / "for_peft")
    ours = example.load_adapter(example.make_model(size), tmp_path / "ours" / "adapter")
    assert example.loss_of(opened) == pytest.approx(example.loss_of(ours), rel=1e-4)
