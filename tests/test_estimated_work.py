"""The work that a run's settings mean, against numbers that are counted by hand."""

import pytest

from randlora_core.experiment.interface import find_experiment
from randlora_core.experiment.rates import build_config
from randlora_core.models.work import TEXT_TOKENS, backbone_cost


def work(experiment, text):
    found = find_experiment(experiment)
    return found.count_work(build_config(found, text.split()))


@pytest.mark.parametrize(
    ("name", "width", "depth", "tokens", "patch", "text_width"),
    [("clip_vit_b32", 768, 12, 50, 32, 512), ("clip_vit_l14", 1024, 24, 257, 14, 768)],
)
def test_a_pass_is_two_operations_for_each_weight_and_token(name, width, depth, tokens, patch, text_width):
    """12 width^2 weights in a block, the patches, attention's two products, and the projection of one token."""
    blocks = 2 * depth * tokens * (12 * width**2 + 2 * tokens * width)
    ends = 2 * (tokens - 1) * 3 * patch**2 * width + 2 * width * text_width
    cost = backbone_cost(name, {"pretrained": True})
    assert cost.example.flops == pytest.approx(blocks + ends, rel=0.01)
    assert cost.num_bytes > cost.vision_bytes > 4 * 12 * depth * width**2
    assert cost.text.flops == pytest.approx(2 * 12 * TEXT_TOKENS * 12 * text_width**2, rel=0.05)
    assert cost.example.saved_bytes > 4 * depth * tokens * width * 8  # at least its matrices' inputs


def test_training_costs_what_its_epochs_show_and_scoring_what_is_scored():
    chosen = "recipe=paper backbone=clip_vit_b32 dataset=dtd adapter=lora"
    cost = backbone_cost("clip_vit_b32", {})
    few, whole = work("vision", f"{chosen} shots=4"), work("vision", chosen)
    assert few.num_examples == 10 * 2 * 128 and whole.num_examples == 76 * 27 * 128  # 188 and 3,384 images
    assert whole.train_flops == whole.num_examples * cost.example.flops
    assert few.evaluate_flops == whole.evaluate_flops > (376 + 1880) * cost.example.flops
    assert whole.model_bytes == cost.vision_bytes and whole.saved_bytes == 128 * cost.example.saved_bytes


def test_both_towers_cost_the_texts_of_the_micro_batch_as_well():
    chosen = "recipe=paper backbone=clip_vit_l14 dataset=eurosat adapter=lora"
    cost = backbone_cost("clip_vit_l14", {})
    in_batch, class_wise = (
        work("vision_language", f"{chosen} training.objective={name}") for name in ("in_batch", "class_wise")
    )
    texts = class_wise.train_flops - class_wise.num_examples * cost.example.flops
    assert texts == class_wise.num_examples / 64 * 10 * cost.text.flops  # ten classes in every micro-batch of 64
    assert 0.98 * texts < in_batch.train_flops - in_batch.num_examples * cost.example.flops < texts
    assert in_batch.model_bytes == cost.num_bytes


def test_what_is_not_fitted_costs_its_passes_once():
    chosen = "recipe=paper backbone=clip_vit_b32 dataset=dtd"
    cost = backbone_cost("clip_vit_b32", {})
    probe, zero_shot = (work("vision", f"{chosen} adapter={name}") for name in ("linear_probe", "zero_shot"))
    assert probe.train_flops == zero_shot.train_flops == 0
    assert probe.evaluate_flops - zero_shot.evaluate_flops == 3384 * cost.example.flops


def test_language_models_cost_epochs_of_nominal_examples():
    chosen = "recipe=paper backbone=qwen2_05b adapter=lora"
    found = work("commonsense_reasoning", f"{chosen} dataset=commonsense_15k")
    cost = backbone_cost("qwen2_05b", {"dtype": "float32"})
    assert found.num_examples == 3 * 938 * 16 and found.train_flops == found.num_examples * cost.example.flops
    assert cost.example.flops == pytest.approx(2 * 494e6 * 128, rel=0.15)
    assert work("commonsense_reasoning", f"{chosen} dataset=mixture") is None


def test_the_cloze_form_has_shorter_texts():
    chosen = "backbone=smollm2_135m adapter=lora dataset=mixture test_items=100"
    cloze, paper = (work("commonsense_reasoning", f"{chosen} form={form}") for form in ("cloze", "paper"))
    assert cloze.train_flops == paper.train_flops / 4 and cloze.saved_bytes == paper.saved_bytes / 4
    options = work("commonsense_reasoning", f"{chosen} protocol=options")
    assert cloze.evaluate_flops == paper.evaluate_flops == options.evaluate_flops / 4
    assert cloze.evaluate_flops == pytest.approx(800 * 3 * 32 * 2 * 134.5e6, rel=0.1)


def test_data_of_unknown_size_have_no_work():
    assert work("vision", "dataset=my_own_folder") is None
