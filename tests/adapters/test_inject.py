"""Which layers get adapters, what is refused, and what a model keeps."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from randlora_core import (
    DoRAConfig,
    LoRAConfig,
    NoLAConfig,
    RandLoRAConfig,
    VeRAConfig,
    adapter_parameters,
    count_parameters,
    disable_adapter,
    inject_adapter,
    merge_adapter,
    unload_adapter,
    unmerge_adapter,
    use_adapters,
)
from randlora_core.adapters.layer import AdapterLayer
from randlora_core.adapters.state import adapter_layers, adapter_state
from randlora_core.adapters.targets import find_targets


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.kq_proj = nn.Linear(8, 8)
        self.fc = Conv1D(12, 8)
        self.down = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.down(self.fc(self.q_proj(x) + self.kq_proj(x)).relu()))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.conv = nn.Conv1d(8, 8, 1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 20, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def model() -> Model:
    torch.manual_seed(0)
    return Model()


IDS = torch.arange(20).reshape(4, 5)
LORA = LoRAConfig(rank=2)


def snapshot(m: nn.Module) -> tuple:
    """All that injection could touch: module types and names, parameters by identity, their flags."""
    modules = [(name, type(module)) for name, module in m.named_modules()]
    parameters = [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in m.named_parameters()]
    return modules, parameters, set(vars(m))


def assert_refused(m: nn.Module, message: str, config=LORA, targets=("q_proj",), **kwargs) -> None:
    """The call raises ValueError with the message and leaves the model as it was."""
    before = snapshot(m)
    with pytest.raises(ValueError, match=message):
        inject_adapter(m, config, targets, **kwargs)
    after = snapshot(m)
    assert before[0] == after[0] and before[2] == after[2]
    for old, new in zip(before[1], after[1], strict=True):
        assert old[:3] == new[:3] and torch.equal(old[3], new[3])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj",), ["blocks.0.q_proj", "blocks.1.q_proj"]),
        (["0.fc", "head"], ["blocks.0.fc", "head"]),
        (("blocks.1.down",), ["blocks.1.down"]),
        (r"blocks\.0\.(fc|down)", ["blocks.0.fc", "blocks.0.down"]),
        (r".*q_proj", ["blocks.0.q_proj", "blocks.0.kq_proj", "blocks.1.q_proj", "blocks.1.kq_proj"]),
    ],
)
def test_targets(targets, expected):
    assert list(find_targets(model(), targets)) == expected
    m = inject_adapter(model(), LORA, targets)
    assert list(adapter_layers(m)) == list(count_parameters(m).per_layer) == expected


def test_all_linear_and_exclusions():
    shapes = find_targets(model(), "all-linear")
    assert len(shapes) == 9
    assert shapes["blocks.0.fc"] == (12, 8) and shapes["blocks.1.down"] == (8, 12) and shapes["head"] == (20, 8)
    left = find_targets(model(), "all-linear", exclude=("q_proj", "blocks.0.fc", "head"))
    assert left.keys() == shapes.keys() - {"blocks.0.q_proj", "blocks.1.q_proj", "blocks.0.fc", "head"}
    left = find_targets(model(), "all-linear", exclude=r"blocks\.0\..*")
    assert list(left) == ["blocks.1.q_proj", "blocks.1.kq_proj", "blocks.1.fc", "blocks.1.down", "head"]


@pytest.mark.parametrize(
    ("targets", "kwargs", "message"),
    [
        (("q_porj",), {}, r"target 'q_porj' matches no layer .did you mean q_proj"),
        (("q_proj", "v_proj"), {}, r"target 'v_proj' matches no layer"),
        (("proj",), {}, "target 'proj' matches no layer"),
        (("zzz",), {}, "layers that can be adapted end in: q_proj, kq_proj, fc, down, head"),
        (r"q_proj", {}, r"'q_proj' matches no layer: one string is a regular expression.* sequence, .'q_proj',."),
        (None, {}, "targets must be a regular expression or a sequence of suffixes, got None"),
        (r"blocks.(", {}, "is not a regular expression"),
        ((), {}, "targets must name at least one layer"),
        ((3,), {}, "targets must be"),
        (("conv",), {}, r"target 'conv' matches conv .Conv1d., which cannot be adapted; layers that can: nn.Linear"),
        (("norm",), {}, r"matches blocks.0.norm .LayerNorm., blocks.1.norm .LayerNorm., which cannot"),
        (("embed",), {}, "embed .Embedding., which cannot be adapted"),
        (("blocks.0",), {}, "target 'blocks.0' matches no layer"),
        (("head",), {"exclude": ("haed",)}, "exclude 'haed' matches none of the targets .did you mean head"),
        (("head",), {"exclude": ("q_proj",)}, "exclude 'q_proj' matches none of the targets"),
        (("head",), {"exclude": ("head",)}, "leaves no layer"),
        (("q_proj",), {"trainable": ("haed",)}, "trainable 'haed' matches no parameter .did you mean head"),
        (("q_proj",), {"trainable": ("blocks.0",)}, "'blocks.0.q_proj.weight' cannot train"),
    ],
)
def test_bad_targets_leave_the_model_as_it_was(targets, kwargs, message):
    assert_refused(model(), message, targets=targets, **kwargs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoRAConfig(rank=2, rank_pattern={"fc": 4}), "rank_pattern 'fc' matches none of the targets"),
        (LoRAConfig(rank=2, alpha_pattern={r".*\.2\..*": 4.0}), "alpha_pattern .* matches none of the targets"),
        (LoRAConfig(rank=2, alpha_pattern={"(": 4.0}), "is not a regular expression"),
        (RandLoRAConfig(rank=9), r"rank 9 .* layer 'blocks.0.q_proj' of shape \(8, 8\); the limit is 8"),
        (RandLoRAConfig(rank=2, rank_pattern={"1.q_proj": 30}), r"rank 30 .* layer 'blocks.1.q_proj'"),
    ],
)
def test_bad_settings_leave_the_model_as_it_was(config, message):
    assert_refused(model(), message, config)


@pytest.mark.parametrize("config", [LoRAConfig(rank=9), DoRAConfig(rank=9), NoLAConfig(rank=9)])
def test_a_rank_above_the_smaller_side_warns(config):
    with pytest.warns(UserWarning, match=r"'blocks.0.fc' of shape \(12, 8\) has rank 9"):
        inject_adapter(model(), config, ("fc",))


@pytest.mark.parametrize("config", [VeRAConfig(rank=99), RandLoRAConfig(rank=8), LoRAConfig(rank=8)])
def test_allowed_ranks_do_not_warn(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject_adapter(model(), config, ("fc",))


def test_an_adapted_model_is_refused():
    m = inject_adapter(model(), LORA, ("q_proj",))
    assert_refused(m, "has adapters already", targets=("head",))


def test_tied_weights_are_refused_unless_excluded():
    m = model()
    m.head.weight = m.embed.weight
    for targets in (("head",), "all-linear"):
        assert_refused(m, "the weight of 'head' is shared by embed, head.*exclude=.'head',.", targets=targets)
    inject_adapter(m, LORA, "all-linear", exclude=("head",))
    assert len(adapter_layers(m)) == 8


def test_two_layers_with_one_weight_are_refused():
    m = model()
    m.blocks[1].q_proj.weight = m.blocks[0].q_proj.weight
    assert_refused(m, "shared by blocks.0.q_proj, blocks.1.q_proj")


def test_a_module_under_two_names_is_adapted_once_everywhere():
    m = model()
    m.blocks[1].down = m.blocks[0].down
    m.shortcut = m.blocks[0].down
    for targets in (("0.down",), ("1.down",), ("shortcut",), ("down", "shortcut")):
        assert list(find_targets(m, targets)) == ["blocks.0.down"]
    reference = m(IDS)
    inject_adapter(m, LORA, ("1.down",))
    layer = m.blocks[0].down
    assert isinstance(layer, AdapterLayer) and m.blocks[1].down is layer and m.shortcut is layer
    assert len(list(adapter_parameters(m))) == 2
    # Not to the bit: on a strided input, torch's choice of a kernel depends on whether the weight is frozen.
    torch.testing.assert_close(m(IDS), reference, rtol=1e-5, atol=1e-5)
    unload_adapter(m)
    assert m.blocks[1].down is m.shortcut is m.blocks[0].down
    assert type(m.shortcut) is nn.Linear


def trained_parameters(injected: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters that train beside the adapter."""
    adapter = {id(parameter) for parameter in adapter_parameters(injected)}
    return {name: p for name, p in injected.named_parameters() if p.requires_grad and id(p) not in adapter}


def test_only_the_adapter_and_what_is_named_trains():
    m = inject_adapter(model(), LORA, ("q_proj",), trainable=("head", "0.norm.bias"))
    assert list(trained_parameters(m)) == ["blocks.0.norm.bias", "head.weight"]
    assert adapter_state(m).trainable == ("blocks.0.norm.bias", "head.weight")
    m(IDS).square().sum().backward()
    own = {id(p) for p in adapter_parameters(m)} | {id(p) for p in trained_parameters(m).values()}
    assert {id(p) for p in m.parameters() if p.requires_grad} == own
    assert {id(p) for p in m.parameters() if p.grad is not None} == own
    counts = count_parameters(m)
    assert counts.trainable == 2 * 2 * 16 + 160 + 8
    assert counts.total == counts.trainable - 168 + sum(p.numel() for p in model().parameters())


def test_trainable_by_expression():
    m = inject_adapter(model(), LORA, ("q_proj",), trainable=r".*norm\.(weight|bias)")
    assert len(trained_parameters(m)) == 4


def test_unload_restores_the_gradient_flags():
    m = model()
    m.embed.requires_grad_(False)
    flags = [p.requires_grad for p in m.parameters()]
    inject_adapter(m, LORA, ("q_proj",), trainable=("embed",))
    assert m.embed.weight.requires_grad
    unload_adapter(m)
    assert [p.requires_grad for p in m.parameters()] == flags


def test_shared_modes_and_passed_through_attributes():
    m = model().eval()
    inject_adapter(m, LORA, ("q_proj", "fc"))
    layer = m.blocks[0].fc
    assert not any(module.training for module in m.modules())
    assert layer.bias is layer.base.bias
    assert (layer.out_features, layer.in_features) == (12, 8)
    assert layer.weight.dtype == torch.float32


def test_merging_twice_and_the_like_are_refused():
    m = inject_adapter(model(), LORA, ("q_proj",))
    with pytest.raises(ValueError, match="not merged"):
        unmerge_adapter(m)
    merge_adapter(m)
    with pytest.raises(ValueError, match="merged already"):
        merge_adapter(m)
    for function in (
        merge_adapter,
        unmerge_adapter,
        unload_adapter,
        adapter_state,
        lambda m: list(adapter_parameters(m)),
    ):
        with pytest.raises(ValueError, match="the Model has no adapter"):
            function(model())
    with pytest.raises(ValueError, match="no adapter"), disable_adapter(model()):
        pass


def test_a_merge_that_is_not_finite_leaves_every_layer_unmerged():
    m = inject_adapter(model(), LORA, ("q_proj", "down"))
    with torch.no_grad():
        for parameter in adapter_parameters(m):
            parameter.normal_()
        m.blocks[1].down.update.lora_B[0, 0] = float("inf")
    weights = [layer.base.weight.clone() for layer in adapter_layers(m).values()]
    with pytest.raises(ValueError, match=re.escape("cannot merge layer 'blocks.1.down'")):
        merge_adapter(m)
    assert not any(layer.merged for layer in adapter_layers(m).values())
    assert all(torch.equal(layer.base.weight, w) for layer, w in zip(adapter_layers(m).values(), weights, strict=True))


def test_a_model_without_layers_for_adapters_is_refused_with_the_layers_there_are():
    for bare in (nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Linear(4, 4)):
        with pytest.raises(ValueError, match="holds no layer that can be adapted; layers that can"):
            inject_adapter(bare, LORA, "all-linear")


def perturbed() -> nn.Module:
    m = inject_adapter(model(), LORA, ("q_proj", "down"))
    with torch.no_grad():
        for parameter in adapter_parameters(m):
            parameter.normal_()
    return m


@pytest.mark.parametrize(
    ("context", "merged"),
    [(disable_adapter, False), (disable_adapter, True), (lambda m: use_adapters(m, [None] * len(IDS)), False)],
)
def test_weights_are_not_exchanged_inside_of_a_context(context, merged):
    m = perturbed()
    expected = m(IDS)
    if merged:
        merge_adapter(m)
    with context(m):
        for function in (unmerge_adapter if merged else merge_adapter, unload_adapter):
            with pytest.raises(ValueError, match="leave disable_adapter and use_adapters first"):
                function(m)
    torch.testing.assert_close(m(IDS), expected)
    if merged:
        unmerge_adapter(m)
    with disable_adapter(m):
        torch.testing.assert_close(m(IDS), model()(IDS))


def test_weights_that_are_computed_from_others_are_not_merged():
    m = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(m[1])
    x = torch.randn(3, 4)
    inject_adapter(m, LORA, "all-linear")
    with torch.no_grad():
        for parameter in adapter_parameters(m):
            parameter.normal_()
    expected = m(x)
    with pytest.raises(ValueError, match="cannot merge layer '1': its weight is no parameter"):
        merge_adapter(m)
    assert torch.equal(m(x), expected)


def test_a_merged_model_survives_copies_and_casts():
    m = inject_adapter(model(), LORA, ("q_proj", "fc"))
    with torch.no_grad():
        for parameter in adapter_parameters(m):
            parameter.normal_()
    frozen = m.blocks[0].fc.base.weight.clone()
    merge_adapter(m)
    expected = m(IDS)
    for duplicate in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(duplicate(IDS), expected)
        duplicate.double()
        unmerge_adapter(duplicate)
        assert torch.equal(duplicate.blocks[0].fc.base.weight, frozen.double())
    assert not any("original_weight" in name for name in m.state_dict())


def test_an_exception_inside_disable_enables_again():
    m = inject_adapter(model(), LORA, ("q_proj",))
    with torch.no_grad():
        for parameter in adapter_parameters(m):
            parameter.normal_()
    expected = m(IDS)
    with pytest.raises(RuntimeError, match="inside"), disable_adapter(m):
        assert not torch.equal(m(IDS), expected)
        raise RuntimeError("inside")
    assert torch.equal(m(IDS), expected)


def test_lora_starts_from_torchs_global_generator():
    def start(seed: int) -> torch.Tensor:
        m = model()
        torch.manual_seed(seed)
        return inject_adapter(m, LORA, ("head",)).head.update.lora_A

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    assert start(1).abs().max() <= 8**-0.5


def test_state_keeps_plain_values():
    m = inject_adapter(model(), RandLoRAConfig(rank=2, basis="very_sparse"), ("q_proj", "head"))
    state = adapter_state(pickle.loads(pickle.dumps(m)))
    assert state.shapes == {"blocks.0.q_proj": (8, 8), "blocks.1.q_proj": (8, 8), "head": (20, 8)}
    assert (state.config.basis, state.config.sparsity) == ("ternary", 8**0.5)
