"""Adapters on bitsandbytes' 4-bit and 8-bit linear layers, on CPU, against layers with the decoded weight."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from randlora_core import (
    METHODS,
    adapter_parameters,
    count_parameters,
    disable_adapter,
    inject_adapter,
    load_adapter,
    make_config,
    merge_adapter,
    merge_error,
    save_adapter,
    unload_adapter,
    unmerge_adapter,
)
from randlora_core.adapters.layer_kinds import LINEAR_4BIT, LINEAR_8BIT, kind_of
from randlora_core.adapters.quantization import quantise_linear_layers
from randlora_core.adapters.state import adapter_layers, model_tensors, tensor_bytes

bnb = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:.*quantised again:UserWarning")

VARIANTS = {**{method: (method, {}) for method in METHODS}, "randdora": ("randlora", {"magnitude": True})}
VARIANTS["nola"] = ("nola", {"num_bases_a": 7, "num_bases_b": 9})
VARIANTS["randlora_blocks"] = ("randlora", {"groups": 2})
QUANTISERS = ("nf4", "fp4", "nf4_plain", "int8")
SHAPES = {"tall": (11, 34), "wide": (34, 11)}  # (in, out); neither side is a multiple of a block

every_quantiser = pytest.mark.parametrize("quantiser", QUANTISERS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def quantised_linear(quantiser: str, in_features: int, out_features: int) -> nn.Module:
    weight, bias = 0.3 * torch.randn(out_features, in_features), torch.randn(out_features)
    if quantiser == "int8":
        layer = bnb.nn.Linear8bitLt(in_features, out_features, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(
            in_features, out_features, quant_type=quantiser[:3], compress_statistics="plain" not in quantiser
        )
    with torch.no_grad():
        layer.weight.data.copy_(weight)
        layer.bias.copy_(bias)
    return layer.to("cpu")


class Network(nn.Module):
    """A quantised layer after a frozen stem, so that the gradient of its input is needed to train the stem's bias."""

    def __init__(self, quantiser: str, shape: str) -> None:
        super().__init__()
        in_features, out_features = SHAPES[shape]
        self.stem = nn.Linear(in_features, in_features)
        self.layer = quantised_linear(quantiser, in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.stem(x))


def plain(quantiser: str, shape: str = "tall") -> Network:
    torch.manual_seed(0)
    return Network(quantiser, shape)


def config_of(variant: str):
    method, fields = VARIANTS[variant]
    return make_config(method, rank=4, **fields)


def adapted(quantiser: str, variant: str, shape: str = "tall") -> Network:
    model = inject_adapter(plain(quantiser, shape), config_of(variant), ("layer",))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def decoded(model: Network) -> Network:
    """The same adapter on an ordinary layer that has the decoded weight."""
    layer = model.layer
    twin = nn.Module.__new__(Network)
    nn.Module.__init__(twin)
    twin.stem = copy.deepcopy(model.stem)
    twin.layer = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        twin.layer.weight.copy_(layer.dense_weight())
        twin.layer.bias.copy_(layer.bias)
    inject_adapter(twin, layer.update.config, ("layer",))
    twin.layer.update.load_state_dict(layer.update.state_dict())
    return twin


def inputs(shape: str = "tall") -> Tensor:
    return torch.randn(3, 5, SHAPES[shape][0], generator=torch.Generator().manual_seed(2))


def stored(model: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.layer.kind.tensors(model.layer.base).items()}


def test_kinds():
    assert kind_of(plain("nf4").layer) is LINEAR_4BIT
    assert kind_of(plain("int8").layer) is LINEAR_8BIT
    assert kind_of(bnb.nn.LinearNF4(4, 4)) is kind_of(bnb.nn.LinearFP4(4, 4)) is LINEAR_4BIT
    assert kind_of(bnb.nn.Embedding4bit(4, 4)) is None


@every_quantiser
def test_the_decoded_weight_is_what_the_layer_multiplies_by(quantiser):
    """In training mode, in which the 8-bit layer does not quantise its inputs."""
    model = plain(quantiser).train()
    shown = (model.layer(torch.eye(11)) - model.layer(torch.zeros(1, 11))).T
    torch.testing.assert_close(shown, kind_of(model.layer).dense(model.layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@every_quantiser
@every_variant
def test_forward_and_backward_match_the_decoded_weight(variant, quantiser, shape):
    reference, x = plain(quantiser, shape).train(), inputs(shape)
    start = inject_adapter(plain(quantiser, shape), config_of(variant), ("layer",)).train()
    # To the bit, but for DoRA's ratio of two norms that are rounded in different orders.
    torch.testing.assert_close(start(x), reference(x), rtol=0, atol=0)
    model = adapted(quantiser, variant, shape).train()
    twin = decoded(model)
    assert not torch.allclose(model(x), reference(x), atol=1e-2)
    torch.testing.assert_close(model(x), twin(x), rtol=1e-5, atol=1e-5)
    gradients = []
    for network in (model, twin):
        x_ = x.clone().requires_grad_()
        network(x_).square().sum().backward()
        gradients.append([x_.grad, *(parameter.grad for parameter in adapter_parameters(network))])
    assert len(gradients[0]) >= 3
    for ours, oracle in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-4 * oracle.abs().max().item())
    assert all(p.grad is None for n, p in model.named_parameters() if ".updates." not in n)


@every_variant
def test_the_8bit_layer_quantises_its_inputs_in_evaluation(variant):
    """The base layer's part keeps that error, of up to a step of 1/127 of each input row; the adapter adds none."""
    model = adapted("int8", variant).eval()
    x = inputs()
    if variant in ("dora", "randdora"):
        ratio = model.layer.update.merged_weight(model.layer.dense_weight()).norm(dim=1)
        ratio = ratio / (model.layer.dense_weight() + model.layer.update.delta_weight()).norm(dim=1)
    else:
        ratio = torch.ones(SHAPES["tall"][1])
    with torch.no_grad():
        with disable_adapter(model):
            error = model(x) - nn.functional.linear(model.stem(x), model.layer.dense_weight(), model.layer.bias)
        assert error.abs().max() > 1e-4
        torch.testing.assert_close(model(x) - decoded(model)(x), ratio * error, rtol=0, atol=1e-4)


@every_quantiser
@every_variant
def test_merge_quantises_the_sum_and_reports_the_error(variant, quantiser):
    model = adapted(quantiser, variant).train()
    x, before = inputs(), stored(model)
    unmerged = model(x)
    weight = model.layer.dense_weight()
    exact = model.layer.update.merged_weight(weight).detach()
    with pytest.warns(UserWarning, match=r"1 merged weights were quantised again; the largest error is .* 'layer'"):
        merge_adapter(model)
    after = model.layer.dense_weight()
    expected = float((after - exact).norm() / (exact - weight).norm())
    assert merge_error(model)["layer"] == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 1
    # A step of 8 bits is 1/127 of the row's maximum; the coarsest of NF4 is 0.30, of FP4 0.33 of the block's.
    step = 0.5 / 127 if quantiser == "int8" else 0.18
    assert ((after - exact).abs() <= 1.1 * step * exact.abs().max()).all()
    assert not torch.equal(after, weight)
    torch.testing.assert_close(
        model(x), nn.functional.linear(model.stem(x), after, model.layer.bias), rtol=1e-5, atol=1e-5
    )
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.zero_()
    unmerge_adapter(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored(model).items())
    with pytest.raises(ValueError, match="not merged"):
        merge_error(model)
    assert not torch.equal(model(x), unmerged)


def test_a_merge_loses_more_of_small_updates_and_more_in_4_bits():
    errors = {}
    for quantiser in ("nf4", "int8"):
        for part in (0.01, 0.3):
            torch.manual_seed(0)
            model = nn.Sequential(quantised_linear(quantiser, 256, 256))
            inject_adapter(model, make_config("lora", rank=16), ("0",))
            layer = model[0]
            with torch.no_grad():
                layer.update.lora_B.normal_()
                size = layer.update.delta_weight().norm() / layer.dense_weight().norm()
                layer.update.lora_B.mul_(part / size)
            errors[quantiser, part] = merge_error(merge_adapter(model))["0"]
    # NF4's steps are 8 % of a block's maximum or more, those of 8 bits 0.8 % of a row's.
    assert errors["nf4", 0.01] > 0.9 > errors["nf4", 0.3] > errors["int8", 0.3]
    assert errors["nf4", 0.01] > 1.2 * errors["int8", 0.01]


@every_quantiser
@every_variant
def test_disable_copy_and_unload(variant, quantiser):
    model, reference, x = adapted(quantiser, variant).train(), plain(quantiser).train(), inputs()
    expected, base = model(x), reference(x)
    with disable_adapter(model):
        assert torch.equal(model(x), base)
    duplicate = merge_adapter(copy.deepcopy(model))
    merged = duplicate(x)
    assert not torch.equal(merged, base)
    assert torch.equal(model(x), expected)
    with disable_adapter(duplicate):
        assert torch.equal(duplicate(x), base)
    assert torch.equal(duplicate(x), merged)
    state = duplicate.layer.base.state_dict()["weight"]
    assert torch.equal(state, duplicate.layer.kind.tensors(duplicate.layer.base)["weight"])
    assert torch.equal(unload_adapter(duplicate)(x), merged)
    assert torch.equal(unload_adapter(model)(x), base)
    assert type(model.layer) is type(duplicate.layer) is type(reference.layer)


@every_quantiser
@every_variant
def test_round_trip_through_a_file(variant, quantiser, tmp_path):
    model = adapted(quantiser, variant)
    save_adapter(model, tmp_path)
    loaded = load_adapter(plain(quantiser), tmp_path)
    x = inputs()
    assert torch.equal(loaded(x), model(x))
    assert not torch.allclose(plain(quantiser)(x), model(x), atol=1e-2)


@every_quantiser
def test_training_lowers_the_loss_and_leaves_the_codes(quantiser):
    model = inject_adapter(plain(quantiser), config_of("randlora"), ("layer",)).train()
    x, before = inputs(), stored(model)
    target = torch.randn(3, 5, 34, generator=torch.Generator().manual_seed(3))
    optimiser = torch.optim.AdamW(adapter_parameters(model), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = (model(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored(model).items())


@every_quantiser
def test_what_autograd_keeps_is_not_the_decoded_weight(quantiser):
    model = adapted(quantiser, "randlora").train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        model(inputs().requires_grad_())
    assert torch.Size((34, 11)) not in kept and torch.Size((11, 34)) not in kept


@every_quantiser
def test_weights_are_counted_however_they_are_packed_and_their_scales_take_memory(quantiser):
    model = adapted(quantiser, "lora")
    layer, adapter = model.layer, sum(parameter.numel() for parameter in adapter_parameters(model))
    dense = sum(parameter.numel() for parameter in (*model.stem.parameters(), layer.bias))
    counts = count_parameters(model)
    assert counts.trainable == adapter and counts.total == dense + layer.in_features * layer.out_features + adapter
    parts = stored(model).values()
    assert tensor_bytes(model_tensors(model)) == 4 * (dense + adapter) + sum(part.nbytes for part in parts)


def test_all_linear_finds_quantised_layers():
    model = nn.Sequential(quantised_linear("nf4", 8, 8), nn.GELU(), quantised_linear("int8", 8, 8))
    inject_adapter(model, config_of("lora"), "all-linear")
    assert [layer.kind for layer in adapter_layers(model).values()] == [LINEAR_4BIT, LINEAR_8BIT]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: bnb.nn.Linear4bit(8, 8), "not quantised yet"),
        (lambda: bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=False), "not quantised yet"),
        (lambda: bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=True).to("cpu"), "has_fp16_weights=True"),
    ],
)
def test_refusals_leave_the_model_as_it_was(layer, reason):
    model = nn.Sequential(nn.Linear(8, 8), layer())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match=f"layer '1' .* cannot be adapted: .*{reason}"):
        inject_adapter(model, config_of("lora"), ("0", "1"))
    assert not adapter_layers(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_the_lossy_format_for_some_cpus_is_undone_and_kept_off():
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    torch.manual_seed(0)
    layer = quantised_linear("nf4", 64, 32)
    model = nn.Sequential(layer).eval()
    x = torch.randn(5, 64)
    reference = nn.functional.linear(x, LINEAR_4BIT.dense(layer), layer.bias)
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    inject_adapter(model, config_of("lora"), ("0",))
    with torch.no_grad():
        output = model(x)
    # Scales rounded to bfloat16 and quantised to 8 bits once more.
    torch.testing.assert_close(output, reference, rtol=0.02, atol=0.05)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merge_adapter(model)
    with torch.no_grad():
        model(x)
    unmerge_adapter(model)
    with torch.no_grad():
        assert torch.equal(model(x), output)


def test_all_plain_linear_layers_of_a_model_are_quantised_their_biases_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Sequential(nn.GELU(), nn.Linear(128, 64, bias=False)))
    twin, x = copy.deepcopy(model), torch.randn(3, 64)
    quantise_linear_layers(model, torch.float32)
    model.to("cpu")
    for name in ("0", "1.1"):
        layer = model.get_submodule(name)
        assert kind_of(layer) is LINEAR_4BIT and layer.weight.quant_state.nested
        twin.get_submodule(name).weight.data.copy_(LINEAR_4BIT.dense(layer))
    assert torch.equal(model[0].bias, twin[0].bias)
    torch.testing.assert_close(model(x), twin(x))
