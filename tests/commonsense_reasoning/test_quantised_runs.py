"""Runs on a base that bitsandbytes quantises: what is trained, recorded, kept and scored again."""

import numpy as np
import pytest
import torch
from kept_runs import untrained_scores
from sample_records import write_tasks
from tiny_language_models import save_models

from commonsense_reasoning.experiment import EXPERIMENT, build_task
from randlora_core.adapters.quantization import is_linear_4bit, is_linear_8bit
from randlora_core.experiment.commands.evaluate import evaluate_run
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.running import run

pytest.importorskip("bitsandbytes")

WEIGHTS = 2 * (2 * 24 * 24 + 2 * 12 * 24 + 3 * 24 * 40)
"""Entries of the quantised layers: q, o, k, v and the three of the MLP in both blocks of `tiny_language_models`."""
KINDS = {"4bit": is_linear_4bit, "8bit": is_linear_8bit}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Overrides of a short run on a tiny Llama."""
    folder = tmp_path_factory.mktemp("quantised")
    data = write_tasks(folder / "data")
    save_models(folder, data, "llama")
    return [
        "backbone=causal_lm",
        f"backbone.path={folder / 'llama'}",
        f"paths.data={data}",
        f"paths.results={folder / 'results'}",
        "adapter.rank=3",
        "training.learning_rate=0.1",
        "training.steps=3",
        "training.batch_size=58",
        "training.precision=fp32",
        "threads=1",
        "device=cpu",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "randlora"])
def test_a_quantised_base_is_trained_on_kept_and_scored_again(setting, method, kind):
    overrides = [*setting, f"adapter={method}", f"backbone.quantize={kind}", "save.adapter=true"]
    record = run(EXPERIMENT, overrides)
    losses = [loss for _, loss in record["curves"]["loss"]]
    assert losses[-1] < losses[0]
    task = build_task(plan_run(EXPERIMENT, overrides).config)
    layers = [layer for layer in task.model.modules() if KINDS[kind](layer)]
    assert sum(layer.in_features * layer.out_features for layer in layers) == WEIGHTS
    places = [text for text in setting if text.startswith("paths.")]
    assert evaluate_run(EXPERIMENT, record["run_id"], places)["test"] == record["scores"]["test"]
    assert untrained_scores(EXPERIMENT, overrides) != record["scores"]["test"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_counts_weights_and_says_what_quantising_saves(setting, kind):
    """In bf16 a weight takes two bytes; as a code half a byte or one, beside it the scales of blocks or of rows."""
    short = [*setting, "adapter=lora", "evaluate.test=false", "training.steps=1"]
    plain = run(EXPERIMENT, short)
    record = run(EXPERIMENT, [*short, f"backbone.quantize={kind}"])
    assert record["parameters"] == plain["parameters"]
    memory = record["memory"]
    saved = memory["model_bytes_bf16"] - memory["model_bytes"]
    if kind == "4bit":
        assert 1.2 * WEIGHTS < saved < 1.5 * WEIGHTS  # scales of blocks that are far from full, in 256s of blocks
    else:
        assert saved == WEIGHTS - 4 * 2 * (2 * 24 + 2 * 12 + 2 * 40 + 24)
    assert memory["model_bytes_bf16"] - 2 * WEIGHTS == 4 * (plain["parameters"]["total"] - WEIGHTS) + extra_bytes(
        setting
    )
    assert "model_bytes" not in plain["memory"]


def extra_bytes(setting):
    """Bytes of the model's buffers."""
    task = build_task(plan_run(EXPERIMENT, [*setting, "adapter=lora"]).config)
    return sum(buffer.nbytes for buffer in task.model.buffers())


def test_the_setting_is_a_part_of_the_identity_only_where_it_says_something(setting):
    def identity(*more):
        return plan_run(EXPERIMENT, [*setting, "adapter=lora", *more]).config.identity(0.1)["backbone"]

    assert "quantize" not in identity("backbone.quantize=null") and identity() == identity("backbone.quantize=null")
    assert identity("backbone.quantize=4bit") == {**identity(), "quantize": "4bit"}
    ids = {plan_run(EXPERIMENT, [*setting, f"+backbone.quantize={kind}"]).run_id for kind in ("null", "4bit", "8bit")}
    assert len(ids) == 3


def test_budgets_and_estimates_are_known_of_a_quantised_model(setting):
    adapters, works = [], []
    for kind in ("null", "4bit", "8bit"):
        overrides = [*setting, f"backbone.quantize={kind}", "adapter=randlora", "examples=20"]
        overrides = [text for text in overrides if not text.startswith("adapter.rank")]
        config = plan_run(EXPERIMENT, [*overrides, "adapter.budget=lora4"]).config
        adapters.append(config.adapter)
        works.append(EXPERIMENT.count_work(config))
    assert adapters[0] == adapters[1] == adapters[2]
    plain, *quantised = works
    assert [work.train_flops for work in quantised] == [plain.train_flops] * 2
    saved = [plain.model_bytes - work.model_bytes for work in quantised]
    np.testing.assert_allclose(saved, [WEIGHTS * (4 - 0.5 - 1 / 64), WEIGHTS * 3], atol=14)


def test_it_is_loaded_onto_the_runs_device(setting, monkeypatch):
    """Weights are quantised where they are loaded to; a plain model is built on the CPU and moved later."""
    asked = []
    monkeypatch.setattr("randlora_core.experiment.backbones.pick_device", lambda name: torch.device("cuda", 1))
    monkeypatch.setattr("randlora_core.experiment.backbones.build_backbone", lambda name, **given: asked.append(given))
    from randlora_core.experiment.backbones import build_run_backbone

    for kind in ("4bit", "null"):
        build_run_backbone(plan_run(EXPERIMENT, [*setting, f"backbone.quantize={kind}"]).config)
    assert asked[0]["device"] == "cuda:1" and asked[0]["quantize"] == "4bit"
    assert "device" not in asked[1] and "quantize" not in asked[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.quantize=2bit", "backbone.quantize='2bit'; accepted: '4bit' or '8bit'"),
        ("backbone.pretrained=false", "quantize='4bit'; accepted: 4bit, 8bit with pre-trained weights"),
        (
            "adapter=full",
            "^backbone.quantize='4bit' holds weights as codes, which adapter=full cannot train; accepted: ",
        ),
    ],
)
def test_what_cannot_be_quantised_is_refused(setting, override, message):
    with pytest.raises(ValueError, match=message):
        run(EXPERIMENT, [*setting[:4], "adapter=lora", "backbone.quantize=4bit", override])


def test_without_bitsandbytes_one_line_says_so(setting, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs bitsandbytes: pip install "randlora\[quantization\]"$'):
        run(EXPERIMENT, [*setting, "adapter=lora", "backbone.quantize=4bit", "seed=9"])
