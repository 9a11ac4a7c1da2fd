"""The architectures of the paper at their full width and depth: built with random weights, adapted and trained a step.

Images are as small as each architecture allows, one patch. The expected counts are those of the paper's settings,
recomputed from the layers' published sizes; a trained head of three classes comes on top for DINOv2.
"""

import hashlib

import pytest
import torch
from fit_settings import settings

from randlora_core.experiment.adaptation import apply_method, parameter_section
from randlora_core.experiment.loop.fit import fit
from randlora_core.experiment.rates import build_config
from vision.experiment import EXPERIMENT as VISION
from vision_language.experiment import EXPERIMENT as VISION_LANGUAGE

CPU = torch.device("cpu")
NUM_CLASSES = 3
SMALLEST = {
    "clip_vit_b32": "+backbone.vision_cfg={image_size: 32}",
    "clip_vit_l14": "+backbone.vision_cfg={image_size: 14}",
    "clip_vit_h14": "+backbone.vision_cfg={image_size: 14}",
    "dinov2_vit_s14": "backbone.image_size=14",
    "dinov2_vit_b14": "backbone.image_size=14",
    "vit_s14_focus": "backbone.image_size=14",
}


def vit_count(width, depth, rank):
    """RandLoRA's parameters on the layers qkv, fc1 and fc2 of a transformer; the smaller side of each is the width."""
    return 3 * depth * -(-width // rank) * (rank + width)


# experiment, backbone, method, rank, trainable parameters, and whether it takes long
CASES = [
    (VISION, "clip_vit_b32", "randlora", 6, 3_566_592, False),
    (VISION, "clip_vit_b32", "lora", 32, 4_128_768, False),
    (VISION, "clip_vit_b32", "vera", 256, 82_944, False),
    (VISION, "clip_vit_b32", "nola", 1, 73_728, False),
    (VISION, "clip_vit_b32", "full", None, 87_849_216 - 48 * 768, False),  # positions of one patch, not of 49
    (VISION, "clip_vit_l14", "randlora", 8, 9_510_912, True),
    (VISION, "clip_vit_h14", "randlora", 10, 15_851_520, True),
    (VISION, "dinov2_vit_b14", "randlora", 6, 3_566_592 + 768 * NUM_CLASSES, False),
    (VISION, "dinov2_vit_b14", "randlora", 8, 2_681_856 + 768 * NUM_CLASSES, False),
    (VISION, "dinov2_vit_b14", "lora", 32, 4_128_768 + 768 * NUM_CLASSES, False),
    (VISION, "dinov2_vit_s14", "randlora", 6, vit_count(384, 12, 6) + 384 * NUM_CLASSES, False),
    (VISION, "vit_s14_focus", "randlora", 6, vit_count(384, 12, 6) + 384 * NUM_CLASSES, False),
    (VISION_LANGUAGE, "clip_vit_b32", "randlora", 6, 5_170_320, False),
    (VISION_LANGUAGE, "clip_vit_b32", "lora", 32, 6_881_280, False),
    (VISION_LANGUAGE, "clip_vit_b32", "vera", 256, 141_312, False),
    (VISION_LANGUAGE, "clip_vit_b32", "nola", 1, 147_456, False),
    (VISION_LANGUAGE, "clip_vit_l14", "randlora", 8, 12_192_768, True),
    (VISION_LANGUAGE, "clip_vit_h14", "randlora", 10, 23_519_664, True),
]


def marked(case):
    experiment, backbone, method, rank, _, is_slow = case
    name = f"{experiment.name}-{backbone}-{method}-{rank}"
    return pytest.param(*case[:-1], id=name, marks=pytest.mark.slow if is_slow else ())


def digests(module):
    """A checksum of every parameter, since a second copy of the largest model would be too much."""
    return {
        name: hashlib.blake2b(value.detach().numpy().tobytes()).digest() for name, value in module.named_parameters()
    }


def train_a_step(task):
    plan = settings(steps=1, learning_rate=1e-3, part_learning_rates=task.part_learning_rates)
    return fit(task.module, task.batches(1, 3), plan, CPU)


@pytest.mark.parametrize(("experiment", "backbone", "method", "rank", "trainable"), map(marked, CASES))
def test_a_real_architecture_is_adapted_and_trained(experiment, backbone, method, rank, trainable, pets):
    given = [f"backbone={backbone}", "backbone.pretrained=false", SMALLEST[backbone], f"adapter={method}"]
    given += [] if rank is None else [f"adapter.rank={rank}"]
    config = build_config(experiment, [*given, "dataset=pets", f"paths.data={pets}", "device=cpu"])
    task = experiment.build_task(config)
    apply_method(task, config)
    assert parameter_section(task)["trainable"] == trainable
    before = digests(task.module)
    result = train_a_step(task)
    assert torch.isfinite(torch.tensor(result.losses)).all() and len(result.losses) == 1
    after = digests(task.module)
    trained = {name for name, value in task.module.named_parameters() if value.requires_grad}
    moved = {name for name in before if after[name] != before[name]}
    assert moved and moved <= trained
    if method == "full":
        assert len(moved) > 0.9 * len(trained)  # a bias that begins at zero may have no gradient
    layers = parameter_section(task)["per_layer"]
    assert all(any(layer in name for name in moved) for layer in layers)  # every adapted layer has learnt
    if "clip" not in backbone:
        assert "head.weight" in moved and len(task.module.head.weight) == NUM_CLASSES
