"""LoRA, DoRA, VeRA and NoLA against PEFT, and NoLA against its definition."""

import copy
import math
import pickle

import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from randlora_core import DoRAConfig, LoRAConfig, NoLAConfig, RandLoRAConfig, VeRAConfig, inject_adapter
from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.state import adapter_bases

SHAPES = [(17, 11), (11, 17), (12, 12)]
KINDS = {"linear": nn.Linear, "conv1d": lambda i, o: Conv1D(o, i)}

shapes = pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, shape: tuple[int, int], config: AdapterConfig, peft_config: object) -> tuple[nn.Module, nn.Module]:
    """The same layer adapted in PEFT and here, both in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind](shape[1], shape[0]))
    nn.init.normal_(model[0].bias)
    ours = inject_adapter(copy.deepcopy(model), config, ("0",))
    return get_peft_model(model, peft_config).train(), ours.train()


def copy_values(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Random values, the same in both; parameters that start as norms keep their size."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in ours.items():
            factor = 1 + 0.3 * torch.rand_like(parameter) if "magnitude" in name else torch.randn_like(parameter)
            values = parameter * factor if "magnitude" in name else factor
            parameter.copy_(values)
            theirs[name].copy_(values)


def assert_same_function(peft_model: nn.Module, ours: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    in_features = ours[0].in_features
    inputs = [torch.randn(3, 5, in_features, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    losses = []
    for model, x in zip((ours, peft_model), inputs, strict=True):
        x.requires_grad_()
        losses.append(model(x))
        losses[-1].sin().sum().backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    # The sine of outputs of some tens makes their rounding, which is the processor's, that much larger in gradients.
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=5e-4, atol=5e-4)
    for a, b in pairs.values():
        assert a.grad.abs().max() > 1e-3
        torch.testing.assert_close(a.grad, b.grad, rtol=5e-4, atol=1e-4)


@kinds
@shapes
@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_lora_and_dora_equal_pefts(variant, kind, out_features, in_features):
    config = {
        "lora": LoRAConfig(rank=4, alpha=6),
        "rslora": LoRAConfig(rank=4, alpha=6, rank_stabilized=True),
        "dora": DoRAConfig(rank=4, alpha=6),
    }[variant]
    peft_config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["0"],
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
        fan_in_fan_out=kind == "conv1d",
    )
    peft_model, ours = pair(kind, (out_features, in_features), config, peft_config)
    tuner = peft_model.base_model.model[0]
    theirs = {"lora_A": tuner.lora_A["default"].weight, "lora_B": tuner.lora_B["default"].weight}
    if variant == "dora":
        theirs["lora_magnitude_vector"] = tuner.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(ours[0].update.lora_magnitude_vector, theirs["lora_magnitude_vector"])
    own = dict(ours[0].update.named_parameters())
    assert own.keys() == theirs.keys()
    copy_values(own, theirs)
    assert_same_function(peft_model, ours, {name: (own[name], theirs[name]) for name in own})
    peft_model.merge_adapter()
    merged = tuner.weight.T if kind == "conv1d" else tuner.weight
    torch.testing.assert_close(ours[0].update.merged_weight(ours[0].dense_weight()), merged, rtol=1e-5, atol=1e-5)


@kinds
@shapes
def test_vera_equals_pefts(kind, out_features, in_features):
    peft_config = VeraConfig(r=6, target_modules=["0"], fan_in_fan_out=kind == "conv1d", d_initial=0.2)
    peft_model, ours = pair(kind, (out_features, in_features), VeRAConfig(rank=6, d_initial=0.2), peft_config)
    tuner = peft_model.base_model.model[0]
    theirs = {name: getattr(tuner, name)["default"] for name in ("vera_lambda_b", "vera_lambda_d")}
    own = dict(ours[0].update.named_parameters())
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    (bases,) = adapter_bases(ours).values()
    with torch.no_grad():
        # Same scale as PEFT's draw, as far as the sample shows: the largest entry is near the bound.
        for name in ("A", "B"):
            expected = getattr(tuner, f"vera_{name}")["default"]
            largest = (getattr(bases, name) * bases.units[name]).abs().max()
            assert largest.item() == pytest.approx(expected.abs().max().item(), rel=0.2)
            setattr(bases, name, expected.clone() / bases.units[name])
    copy_values(own, theirs)
    assert_same_function(peft_model, ours, {name: (own[name], theirs[name]) for name in own})


@shapes
@pytest.mark.parametrize(("tokens", "half"), [(8, True), (9, True), (9, False)])
def test_vera_scales_the_bases_for_many_tokens_in_16_bits(out_features, in_features, tokens, half):
    """Values and gradients are those of the update's weight either way; a copy of the outputs is kept otherwise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(in_features, out_features))
    inject_adapter(model, VeRAConfig(rank=2), ("0",))
    update, x = model[0].update, torch.randn(tokens, in_features, requires_grad=True)
    leaves = (x, *update.parameters())
    with torch.no_grad():
        for parameter in update.parameters():
            parameter.normal_()
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        output = update.added_output(x)
    assert any(tensor.shape == output.shape for tensor in saved) != (tokens == 9 and half)
    expected = x @ update.delta_weight().T
    upstream = torch.randn_like(expected)
    grads = torch.autograd.grad(output, leaves, upstream.to(output.dtype))
    bound = 0.02 if half else 1e-5  # some roundings to 2^-9 of values that partly cancel
    for found, known in zip(
        (output, *grads), (expected, *torch.autograd.grad(expected, leaves, upstream)), strict=True
    ):
        assert (found.float() - known).norm() <= bound * known.norm()
        assert known.norm() > 1e-3


def test_vera_keeps_no_matrix_of_a_layer_and_casts_once():
    """In float32 the stored bfloat16 is cast once for all layers and steps, also where inference came first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 17), nn.Linear(17, 11), nn.Linear(11, 9))
    inject_adapter(model, VeRAConfig(rank=6), "all-linear")
    with torch.no_grad():
        for layer in model:
            layer.update.vera_lambda_b.normal_()
    (bases,) = adapter_bases(model).values()
    x, kept = torch.randn(3, 11), []
    with torch.inference_mode():
        expected = model(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = model(x)
    output.sum().backward()
    assert torch.equal(output, expected)
    assert all(update.vera_lambda_d.grad is not None for update in (layer.update for layer in model))
    casts = {name: cast for (name, _), (*_, cast) in bases._casts.items()}
    matrices = [tensor for tensor in kept if tensor.ndim == 2 and tensor.shape[0] != len(x) and 6 in tensor.shape]
    assert casts.keys() == {"A", "B"} and len(matrices) == 5  # all but the first layer's A, whose input needs nothing
    assert {matrix.data_ptr() for matrix in matrices} == {cast.data_ptr() for cast in casts.values()}
    assert all(torch.equal(cast, getattr(bases, name).float()) for name, cast in casts.items())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not next(iter(adapter_bases(twin).values())).kept_casts()
        assert torch.equal(twin(x), expected)
    bases.A = bases.A.clone()
    torch.testing.assert_close(model(x), expected)
    bases.A.mul_(2)
    assert not torch.allclose(model(x), expected)  # what has changed is cast again
    model.to("meta")
    assert not bases.kept_casts()


def test_vera_shares_one_pair_and_has_no_limit_on_the_rank():
    model = nn.Sequential(nn.Linear(11, 17), nn.Linear(17, 9))
    inject_adapter(model, VeRAConfig(rank=40), "all-linear")
    (bases,) = adapter_bases(model).values()
    assert bases.shapes == {"A": (40, 17), "B": (17, 40)}
    assert bases.units == pytest.approx({"A": math.sqrt(2 / 17), "B": math.sqrt(2 / 40)})


@kinds
@shapes
def test_nola_is_its_definition(kind, out_features, in_features):
    """dW = (alpha / r) (sum b_j B_j) (A_0 + sum a_i A_i) with explicit loops, beside a larger layer."""
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind](in_features, out_features), nn.Linear(out_features, 30))
    config = NoLAConfig(rank=3, alpha=6, num_bases_a=5, num_bases_b=8)
    update = inject_adapter(model, config, "all-linear").double()[0].update
    bases, units = update.bases, update.bases.units
    assert not update.nola_alpha.any() and not update.nola_beta.any()
    with torch.no_grad():
        update.nola_alpha.normal_()
        update.nola_beta.normal_()
    a = bases.A0[:, :in_features].double() * units["A0"] / math.sqrt(in_features)
    for i in range(5):
        a = a + update.nola_alpha[i] * units["A"] * bases.A[i, :, :in_features].double()
    b = torch.zeros(out_features, 3, dtype=torch.float64)
    for j in range(8):
        b = b + update.nola_beta[j] * units["B"] * bases.B[j, :out_features].double()
    torch.testing.assert_close(update.delta_weight(), 2.0 * b @ a, rtol=1e-12, atol=1e-12)


def test_nola_ranges_of_the_frozen_matrices():
    """A_i and B_j are U(-1, 1) / sqrt(number); A_0 is LoRA's kaiming start, U(-1, 1) / sqrt(in)."""
    model = inject_adapter(
        nn.Sequential(nn.Linear(300, 200)), NoLAConfig(rank=2, num_bases_a=64, num_bases_b=36), ("0",)
    )
    (bases,) = adapter_bases(model).values()
    for name, bound in (("A0", 1.0), ("A", 1 / 8), ("B", 1 / 6)):
        values = getattr(bases, name).float() * bases.units[name]
        assert values.abs().max() == pytest.approx(bound, rel=0.02)
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    a, _ = model[0].update.factors()
    reference = inject_adapter(nn.Sequential(nn.Linear(300, 200)), LoRAConfig(rank=2), ("0",))[0].update.lora_A
    assert a.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.02)


def test_nola_first_gradient_moves_beta_only():
    model = inject_adapter(nn.Sequential(nn.Linear(11, 17)), NoLAConfig(rank=2), ("0",))
    model(torch.randn(4, 11)).square().sum().backward()
    update = model[0].update
    assert update.nola_alpha.shape == update.nola_beta.shape == (1024,)
    assert not update.nola_alpha.grad.any() and (update.nola_beta.grad != 0).all()


def test_dora_survives_a_row_of_zeros():
    model = nn.Sequential(nn.Linear(6, 4))
    nn.init.zeros_(model[0].weight)
    x = torch.randn(3, 6)
    expected = model(x)
    for config in (DoRAConfig(rank=2), RandLoRAConfig(rank=2, magnitude=True)):
        adapted = inject_adapter(copy.deepcopy(model), config, ("0",))
        assert torch.equal(adapted(x), expected)


def test_dora_dropout_acts_on_the_rescaling_too():
    """As in PEFT: with B = 0 and m doubled, the added part is W0 applied to the dropped input."""
    model = inject_adapter(nn.Sequential(nn.Linear(6, 4)), DoRAConfig(rank=2, dropout=0.5), ("0",))
    with torch.no_grad():
        model[0].update.lora_magnitude_vector.mul_(2)
    x = torch.randn(3, 6)
    torch.manual_seed(0)
    output = model(x)
    torch.manual_seed(0)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(output, model[0].base(x) + dropped @ model[0].base.weight.T, rtol=1e-5, atol=1e-5)


def test_default_alphas():
    def scale(config: AdapterConfig) -> float:
        return config.for_layer("x").scale

    assert scale(LoRAConfig(rank=4)) == scale(DoRAConfig(rank=4)) == 2.0
    assert scale(LoRAConfig(rank=4, rank_stabilized=True)) == 4.0
    assert scale(NoLAConfig(rank=4)) == 1.0
    assert scale(RandLoRAConfig(rank=4)) == 20.0
