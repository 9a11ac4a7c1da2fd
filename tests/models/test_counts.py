"""Parameter counts of the paper's models against the published tables and independent sums over known layer sizes."""

import pytest

from randlora_core import RandLoRAConfig, count_parameters, inject_adapter
from randlora_core.adapters.targets import find_targets
from randlora_core.models import counts
from randlora_core.models.architectures import ARCHITECTURES, build_architecture

# model, scope, {(method, rank): trainable}, frozen parameters
EXPECTED = [
    (
        "clip_vit_b32",
        "full",
        {("lora", 32): 6_881_280, ("randlora", 6): 5_170_320, ("vera", 256): 141_312, ("nola", 1): 147_456}
        | {("lora", 24): 5_160_960, ("randlora", 5): 6_202_548},
        151_277_313,
    ),
    (
        "clip_vit_b32",
        "vision",
        {("lora", 32): 4_128_768, ("randlora", 6): 3_566_592, ("vera", 256): 82_944, ("nola", 1): 73_728},
        87_849_216,
    ),
    (
        "clip_vit_l14",
        "full",
        {("lora", 32): 15_138_816, ("randlora", 8): 12_192_768, ("randlora", 10): 9_824_760, ("vera", 256): 297_984}
        | {("nola", 1): 221_184},
        427_616_513,
    ),
    (
        "clip_vit_l14",
        "vision",
        {("lora", 32): 11_010_048, ("randlora", 8): 9_510_912, ("vera", 256): 215_040, ("nola", 1): 147_456},
        303_966_208,
    ),
    (
        "clip_vit_h14",
        "full",
        {("lora", 32): 29_360_128, ("randlora", 10): 23_519_664, ("vera", 1024): 696_320, ("nola", 1): 344_064},
        986_109_441,
    ),
    (
        "clip_vit_h14",
        "vision",
        {("lora", 32): 18_350_080, ("randlora", 10): 15_851_520, ("vera", 1024): 425_984, ("nola", 1): 196_608},
        632_076_800,
    ),
    (
        "dinov2_vit_b14",
        "full",
        {("lora", 32): 4_128_768, ("randlora", 6): 3_566_592, ("randlora", 8): 2_681_856},
        None,
    ),
    (
        "qwen2_05b",
        "full",
        {("lora", 16): 5_898_240, ("lora", 32): 11_796_480, ("dora", 16): 6_064_128, ("nola", 1): 245_760}
        | {("vera", 256): 196_608, ("vera", 1024): 288_768}
        | {("randlora", 10): 5_956_992, ("randlora", 6): 9_883_104, ("randlora", 5): 11_842_944},
        494_032_768,
    ),
    (
        "phi3_mini",
        "full",
        {("lora", 16): 22_020_096, ("lora", 32): 44_040_192, ("lora", 64): 88_080_384, ("nola", 1): 196_608}
        | {("randlora", 40): 23_003_904, ("randlora", 20): 45_712_128, ("randlora", 10): 91_128_576},
        3_821_079_552,
    ),
    (
        "llama3_8b",
        "full",
        {("lora", 16): 28_311_552, ("lora", 32): 56_623_104, ("lora", 64): 113_246_208, ("nola", 1): 327_680}
        | {("randlora", 60): 28_778_112, ("randlora", 30): 56_626_112, ("randlora", 15): 112_723_968},
        8_030_261_248,
    ),
]
# model, scope, LoRA's ranks, the RandLoRA ranks closest to them
CLOSEST = [
    ("clip_vit_b32", "full", (1, 2, 4, 8, 16, 32, 64, 128), (195, 95, 39, 19, 9, 5, 2, 1)),
    ("clip_vit_b32", "vision", (1, 2, 4, 8, 16, 32, 64, 128), (383, 109, 43, 21, 10, 5, 3, 1)),
    ("clip_vit_l14", "full", (1, 2, 4, 8, 16, 32, 64, 128), (256, 114, 56, 27, 13, 6, 3, 2)),
    ("clip_vit_h14", "full", (1, 2, 4, 8, 16, 32, 64, 128), (342, 156, 71, 33, 16, 8, 4, 2)),
    ("qwen2_05b", "full", (16, 32, 64), (10, 5, 3)),
    ("phi3_mini", "full", (16, 32, 64), (42, 21, 10)),
    ("llama3_8b", "full", (16, 32, 64), (61, 30, 15)),
]


@pytest.fixture(scope="module")
def models():
    """(model, scope) -> the module on the meta device and its targets' shapes."""
    built = {}
    for name in ARCHITECTURES:
        architecture = build_architecture(name)
        for scope, model in counts.scopes(architecture).items():
            built[name, scope] = model, find_targets(model, architecture.targets)
    return built


@pytest.mark.parametrize(("name", "scope", "rows", "frozen"), EXPECTED)
def test_counts_are_the_papers(models, name, scope, rows, frozen):
    model, shapes = models[name, scope]
    assert {row: counts.count_trainable(shapes, *row) for row in rows} == rows
    if frozen is not None:
        assert sum(parameter.numel() for parameter in model.parameters()) == frozen
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("name", "scope", "lora_ranks", "ranks"), CLOSEST)
def test_closest_rank(models, name, scope, lora_ranks, ranks):
    _, shapes = models[name, scope]
    budgets = [counts.count_trainable(shapes, "lora", rank) for rank in lora_ranks]
    assert tuple(counts.closest_rank(shapes, "randlora", budget) for budget in budgets) == ranks
    assert tuple(counts.closest_rank(shapes, "lora", budget + 1) for budget in budgets) == lora_ranks


def test_closest_rank_refuses_what_has_no_answer(models):
    _, shapes = models["clip_vit_b32", "full"]
    with pytest.raises(ValueError, match="nola: its number of parameters does not depend on the rank"):
        counts.closest_rank(shapes, "nola", 1000)
    with pytest.raises(ValueError, match="budget of at least 1"):
        counts.closest_rank(shapes, "lora", 0)


def test_table(capsys):
    counts.main(["clip_vit_b32"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["model", "scope", "method", "rank", "trainable", "percent", "LoRA-32"]
    assert ["clip_vit_b32", "full", "randlora", "6", "5,170,320", "3.3048", "0.751"] in rows
    assert ["clip_vit_b32", "vision", "randlora", "6", "3,566,592", "3.9015", "0.864"] in rows


def test_unknown_model_is_one_clear_line(capsys):
    assert counts.main(["clip_vit_b33"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown architecture 'clip_vit_b33'; known: clip_vit_b32")


@pytest.mark.parametrize(("split", "trainable"), [(False, 5_170_320), (True, 8_617_200)])
def test_injected_clip_b32_has_the_predicted_parameters(split, trainable):
    architecture = build_architecture("clip_vit_b32")
    projections = ("attn.q_proj", "attn.k_proj", "attn.v_proj") if split else ("attn.in_proj",)
    targets = (*projections, "mlp.c_fc", "mlp.c_proj")
    inject_adapter(architecture.model, RandLoRAConfig(rank=6), targets, split_in_proj=split)
    counted = count_parameters(architecture.model)
    assert counted.trainable == trainable == sum(counted.per_layer.values())
    assert counted.total == 151_277_313 + trainable
