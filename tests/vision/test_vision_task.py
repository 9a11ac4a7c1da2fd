"""The task of a vision run on tiny models with random weights: its head, its start, and what a step changes."""

import dataclasses
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from fit_settings import settings
from tiny_vision import OPTIONS, build
from torch.nn import functional as F

from randlora_core.datasets.load import load_data
from randlora_core.experiment.adaptation import apply_method
from randlora_core.experiment.loop.fit import fit
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.running import run
from randlora_core.image_classification.data import load_images
from vision.experiment import EXPERIMENT, VisionTask
from vision_language.experiment import EXPERIMENT as VISION_LANGUAGE

CPU = torch.device("cpu")
DINOV2, CLIP = OPTIONS


@pytest.fixture
def make_task(given):
    """Builds the task of a run and applies its method."""

    def make(model, method, *overrides):
        config = build_config(EXPERIMENT, [*given(model, method), *overrides])
        task = EXPERIMENT.build_task(config)
        apply_method(task, config)
        return task

    return make


def change(task, steps, rate):
    """Trains and gives how far every parameter of the module has moved."""
    plan = settings(
        steps=steps,
        learning_rate=rate,
        weight_decay=0.0,
        clip=None,
        part_learning_rates=task.part_learning_rates,
    )
    before = {name: value.detach().clone() for name, value in task.module.named_parameters()}
    fit(task.module, task.batches(steps, 6), plan, CPU)
    return {name: value.detach() - before[name] for name, value in task.module.named_parameters()}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("setting", "expected"), [("0.02", 0.02), ("1e-4", 1e-4), ("null", 1e-3)])
def test_the_head_learns_at_its_own_rate_and_the_rest_at_the_runs(make_task, method, setting, expected):
    """Adam's first step is as long as the learning rate wherever the gradient is not tiny."""
    moved = change(make_task(DINOV2, method, f"training.head_learning_rate={setting}"), 1, 1e-3)
    head = moved.pop("head.weight").abs()
    assert float(head.max()) == pytest.approx(expected, rel=1e-3)
    assert float(head.median()) == pytest.approx(expected, rel=1e-2)
    assert max(float(value.abs().max()) for value in moved.values()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_text_classifier_stays_as_it_is_while_the_tower_learns(make_task, method):
    task = make_task(CLIP, method)
    before = {name: value.clone() for name, value in task.module.head.named_buffers()}
    moved = change(task, 3, 0.01)
    assert all(torch.equal(value, before[name]) for name, value in task.module.head.named_buffers())
    assert len(before) == 2 and not task.part_learning_rates
    assert all(name.startswith("model.") for name in moved) and max(value.abs().max() for value in moved.values()) > 0


def zero_shot_logits(pets, images):
    """exp(logit_scale) times the cosines with the averaged texts, from the whole of CLIP and its own functions."""
    backbone, data = build(CLIP), load_data("pets", root=pets)
    texts = [
        backbone.model.encode_text(backbone.tokenize([template.format(name) for name in data.class_names]), True)
        for template in data.templates
    ]
    features = backbone.model.encode_image(images, normalize=True)
    return backbone.model.logit_scale.exp() * features @ F.normalize(sum(texts), dim=-1).T


@pytest.mark.parametrize("method", ["zero_shot", "full", "lora", "randlora", "nola", "vera", "dora"])
def test_every_method_begins_at_zero_shot(method, make_task, pets):
    task = make_task(CLIP, method)
    images, _ = task.batches(1, 6)[0]
    with torch.no_grad():
        expected = zero_shot_logits(pets, images)
        found = task.classifier(CPU, "fp32")(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std(dim=1).min()) > 1e-2  # the classes are told apart


def test_zero_shot_predicts_what_both_towers_predict(given, tmp_path):
    overrides = [*given(CLIP, "zero_shot"), f"paths.results={tmp_path}"]
    record, other = run(EXPERIMENT, overrides), run(VISION_LANGUAGE, overrides)
    assert record["scores"] == other["scores"] and record["parameters"]["trainable"] == 0
    assert record["curves"]["loss"] == [] and record["learning_rate"]["source"] == "none"


def test_the_text_tower_is_let_go_once_the_classes_are_embedded(given):
    config = build_config(EXPERIMENT, given(CLIP, "lora"))
    backbone = build(CLIP)
    tower = weakref.ref(backbone.model.transformer), weakref.ref(backbone.model.token_embedding.weight)
    kept = weakref.ref(backbone.model.visual)
    task = VisionTask(config, backbone)
    del backbone
    gc.collect()
    assert [part() for part in tower] == [None, None] and task.model is kept()


def test_a_probe_encodes_no_texts(given, monkeypatch):
    monkeypatch.setattr("vision.experiment.class_embeddings", lambda *arguments: pytest.fail("texts were encoded"))
    config = build_config(EXPERIMENT, given(CLIP, "linear_probe"))
    assert EXPERIMENT.build_task(config).encode(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    with pytest.raises(pytest.fail.Exception, match="texts were encoded"):
        EXPERIMENT.build_task(build_config(EXPERIMENT, given(CLIP, "lora")))


def test_a_language_model_takes_no_images(given):
    config = build_config(EXPERIMENT, given(DINOV2, "lora"))
    with pytest.raises(ValueError, match="backbone 'words' takes no images; accepted: models of DINOv2 and CLIP"):
        VisionTask(config, SimpleNamespace(name="words", kind="causal_lm"))


def test_a_class_is_one_text_or_the_average_over_all_templates(make_task, monkeypatch):
    templates = ("a photo of a {}.", "a drawing of a {} in a book.")
    two = lambda config: dataclasses.replace(load_images(config), templates=templates)  # noqa: E731
    monkeypatch.setattr("vision.experiment.load_images", two)
    heads = {name: make_task(CLIP, "zero_shot", f"prompts={name}").module.head for name in ("single", "ensemble")}
    backbone = build(CLIP)
    texts = [
        backbone.model.encode_text(backbone.tokenize([template.format(name) for name in ("ant", "bee", "cow")]), True)
        for template in templates
    ]
    assert torch.allclose(heads["single"].texts, texts[0], atol=1e-5)
    assert torch.allclose(heads["ensemble"].texts, F.normalize(sum(texts), dim=-1), atol=1e-5)
    assert not torch.allclose(texts[0], texts[1], atol=1e-2)
