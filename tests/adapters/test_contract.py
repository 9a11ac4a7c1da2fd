"""What every method promises on every kind of layer.

The methods come from METHODS, with their variants; a new method is under this contract as soon as it has a line there
and, where its rank means something else, one in VARIANTS.
"""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from randlora_core import (
    METHODS,
    adapter_parameters,
    count_parameters,
    disable_adapter,
    inject_adapter,
    make_config,
    merge_adapter,
    unload_adapter,
    unmerge_adapter,
)
from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.layer_kinds import kind_of
from randlora_core.adapters.state import adapter_bases, adapter_layers

VARIANTS = {
    **{method: (method, {}) for method in METHODS},
    "rslora": ("lora", {"rank_stabilized": True}),
    "randlora_sparse": ("randlora", {"basis": "sparse"}),
    "randlora_normal": ("randlora", {"basis": "normal", "scale_by_sqrt_bases": True}),
    "randlora_gamma_zero": ("randlora", {"init": "gamma_zero"}),
    "randdora": ("randlora", {"magnitude": True}),
    "randlora_a": ("randlora", {"distinct_a": True, "num_bases": 6}),
    "randlora_b": ("randlora", {"num_bases": 2}),
    "randlora_blocks": ("randlora", {"rank": 3, "groups": "max"}),  # 3 groups: one row of A in each
    "randlora_blocks_of_two": ("randlora", {"groups": 2}),
    "randlora_blocks_remade": ("randlora", {"rank": 3, "groups": 3, "store_bases": False}),
    "randdora_blocks": ("randlora", {"rank": 3, "groups": 3, "magnitude": True}),
    "nola": ("nola", {"num_bases_a": 7, "num_bases_b": 9}),
    "nola_shifted": ("nola", {"num_bases_a": 7, "num_bases_b": 9, "shifted": True}),
}
LAYERS = {
    "linear_tall": lambda: nn.Linear(11, 17),
    "linear_wide": lambda: nn.Linear(17, 11),
    "linear_square": lambda: nn.Linear(11, 11, bias=False),
    "conv1d_tall": lambda: Conv1D(17, 11),
    "conv1d_wide": lambda: Conv1D(11, 17),
}
RANK = 4  # divides none of 11 and 17, so the last basis is cut


class Network(nn.Module):
    """The layer under test between a trained stem, which needs the layer's input gradient, and a frozen norm."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        out_features, in_features = kind_of(layer).shape(layer)
        self.stem = nn.Linear(in_features, in_features)
        self.layer = layer
        self.norm = nn.LayerNorm(out_features)
        self.out_features, self.in_features = out_features, in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.stem(x)))


def config_of(variant: str, **fields) -> AdapterConfig:
    method, settings = VARIANTS[variant]
    return make_config(method, **{"rank": RANK, **settings, **fields})


def plain(kind: str) -> Network:
    torch.manual_seed(0)
    return Network(LAYERS[kind]())


def perturb(model: nn.Module, seed: int = 1) -> nn.Module:
    """Move every adapter parameter far enough that the output changes well beyond rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(parameter.device, parameter.dtype))
    return model


def adapted(kind: str, variant: str, **fields) -> Network:
    return inject_adapter(plain(kind), config_of(variant, **fields), ("layer",))


def inputs(model: Network, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, model.in_features, generator=torch.Generator().manual_seed(2)).to(dtype)


def can_train(model: Network, name: str) -> Tensor:
    """Which entries of a parameter the bases let act: a column of zeros in a sparse A silences that entry of gamma."""
    if not name.endswith("randlora_gamma"):
        return torch.tensor(True)
    return model.layer.update.basis_slices()[0].bool().any(dim=-2)


every_combination = pytest.mark.parametrize("kind", LAYERS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_combination
@every_variant
def test_the_output_is_the_base_models_at_the_start(kind, variant):
    model, reference = adapted(kind, variant), plain(kind)
    x = inputs(model)
    if kind.startswith("conv1d"):
        # Its weight lies the other way round in memory: a processor's kernel for that may differ in the last bits.
        torch.testing.assert_close(model(x), reference(x), rtol=2e-6, atol=2e-6)
    else:
        assert torch.equal(model(x), reference(x))
    assert type(model) is Network
    perturb(model)
    assert not torch.allclose(model(x), reference(x), atol=1e-3)


@every_combination
@every_variant
def test_gradients_reach_all_and_only_the_adapter(kind, variant):
    model = perturb(adapted(kind, variant))
    x = inputs(model).requires_grad_()
    (model(x) * torch.linspace(-1, 1, model.out_features).exp()).square().sum().backward()
    trained = {id(parameter) for parameter in adapter_parameters(model)}
    assert trained
    for name, parameter in model.named_parameters():
        if id(parameter) in trained:
            assert torch.equal(parameter.grad != 0, can_train(model, name).expand_as(parameter)), name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name
    assert x.grad is not None


@pytest.mark.parametrize("kind", ["linear_tall", "linear_wide", "conv1d_wide"])
@every_variant
def test_gradients_match_finite_differences(kind, variant):
    """DoRA's norm is a constant to autograd and not to a difference quotient, so its factors are left out."""
    model = perturb(adapted(kind, variant).double())
    layer, x = model.layer, inputs(model, torch.float64)[0, :2].requires_grad_()
    dora = hasattr(layer.update, "lora_magnitude_vector")
    names = [n for n, _ in layer.update.named_parameters() if not dora or n == "lora_magnitude_vector"]
    values = [layer.update.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        parameters = {f"updates.default.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(layer, parameters, (x,))

    assert torch.autograd.gradcheck(function, (x, *values))


@every_combination
@every_variant
def test_merged_output_equals_unmerged_and_unmerge_restores_every_bit(kind, variant):
    model = perturb(adapted(kind, variant).double())
    x = inputs(model, torch.float64)
    unmerged, frozen = model(x), model.layer.base.weight.detach().clone()
    assert merge_adapter(model) is model
    torch.testing.assert_close(model(x), unmerged, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.zero_()
    torch.testing.assert_close(model(x), unmerged, rtol=1e-10, atol=1e-10)
    assert not torch.equal(model.layer.base.weight, frozen)
    unmerge_adapter(model)
    assert torch.equal(model.layer.base.weight, frozen)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_in_storage_dtype(variant, dtype):
    """The merged weight is the float32 sum, rounded once; unmerging does not subtract it again."""
    model = plain("linear_wide").to(dtype)
    inject_adapter(model, config_of(variant), ("layer",))
    perturb(model)
    frozen = model.layer.base.weight.detach().clone()
    expected = model.layer.update.merged_weight(frozen.float()).to(dtype)
    merge_adapter(model)
    assert torch.equal(model.layer.base.weight, expected)
    assert not torch.equal(model.layer.base.weight, frozen)
    unmerge_adapter(model)
    assert torch.equal(model.layer.base.weight, frozen)


@every_combination
@every_variant
def test_delta_weight_is_what_the_output_shows(kind, variant):
    """The layer's own matrix, read off its output for the unit vectors, is the merged weight."""
    model = perturb(adapted(kind, variant).double())
    layer = model.layer
    zero = torch.zeros(1, model.in_features, dtype=torch.float64)
    shown = (layer(torch.eye(model.in_features, dtype=torch.float64)) - layer(zero)).T
    expected = layer.update.merged_weight(layer.dense_weight())
    assert expected.shape == (model.out_features, model.in_features)
    torch.testing.assert_close(shown, expected, rtol=1e-10, atol=1e-10)


@every_combination
@every_variant
def test_disabled_equals_base(kind, variant):
    model, reference = perturb(adapted(kind, variant)), plain(kind)
    x = inputs(model)
    enabled = model(x)
    with disable_adapter(model), disable_adapter(model):
        assert torch.equal(model(x), reference(x))
    assert torch.equal(model(x), enabled)
    merge_adapter(model)
    merged = model(x)
    with disable_adapter(model):
        assert torch.equal(model(x), reference(x))
    assert torch.equal(model(x), merged)


@every_combination
@every_variant
def test_unload_gives_the_plain_model_back(kind, variant):
    model, reference = perturb(adapted(kind, variant)), plain(kind)
    x = inputs(model)
    merged = copy.deepcopy(model)
    expected = merge_adapter(merged)(x)
    unload_adapter(merged)
    assert torch.equal(merged(x), expected)
    unload_adapter(model)
    assert torch.equal(model(x), reference(x))
    for result in (model, merged):
        assert type(result.layer) is type(reference.layer)
        assert result.state_dict().keys() == reference.state_dict().keys()
        assert all(parameter.requires_grad for parameter in result.parameters())
        inject_adapter(result, config_of(variant), ("layer",))


@every_combination
@every_variant
def test_predicted_count_equals_counted(kind, variant):
    model, config = adapted(kind, variant), config_of(variant)
    shape = (model.out_features, model.in_features)
    predicted = METHODS[config.method].update.num_parameters(config.for_layer("layer"), shape)
    counts = count_parameters(model)
    assert counts.per_layer == {"layer": predicted}
    assert counts.trainable == predicted == sum(p.numel() for p in adapter_parameters(model))
    assert counts.total == predicted + count_parameters(plain(kind)).total


@every_variant
def test_dropout_acts_in_training_and_not_in_evaluation(variant):
    model, reference = perturb(adapted("linear_tall", variant, dropout=0.5)), perturb(adapted("linear_tall", variant))
    x = inputs(model)
    model.eval()
    assert torch.equal(model(x), reference(x))
    model.train()
    torch.manual_seed(0)
    first, second = model(x), model(x)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    assert torch.equal(model(x), first)
    with disable_adapter(model):
        assert torch.equal(model(x), plain("linear_tall")(x))


@every_variant
def test_dropout_is_the_update_of_a_scaled_input(variant):
    """With everything in float64 the expectation over masks is the output without dropout, up to sampling error."""
    model = perturb(adapted("linear_wide", variant, dropout=0.25).double())
    x = inputs(model, torch.float64)[:1].expand(4000, -1, -1)
    torch.manual_seed(0)
    sampled = model.train().layer(x)
    expected = model.eval().layer(x[:1])
    error = sampled.std(dim=0) / math.sqrt(len(x))
    assert ((sampled.mean(dim=0, keepdim=True) - expected).abs() <= 5 * error + 1e-12).all()
    assert (error > 1e-6).float().mean() > 0.5


@every_variant
@pytest.mark.parametrize("kind", ["linear_tall", "conv1d_wide"])
def test_an_adapter_in_float32_works_on_a_bfloat16_model(kind, variant):
    model = perturb(inject_adapter(plain(kind).bfloat16(), config_of(variant), ("layer",)))
    assert all(parameter.dtype == torch.float32 for parameter in adapter_parameters(model))
    x = inputs(model, torch.bfloat16)
    output = model(x)
    assert output.dtype == torch.bfloat16
    reference = copy.deepcopy(model).float()
    # bfloat16 keeps 8 bits; the norm's output is of size 1 to 3.
    torch.testing.assert_close(output.float(), reference(x.float()), rtol=0.03, atol=0.06)
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter_parameters(model))


@every_variant
def test_a_model_cast_after_injection_works(variant):
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    bases = {rank: [b.clone() for b in shared.buffers()] for rank, shared in adapter_bases(model).items()}
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), expected, rtol=0.05, atol=0.1)
    torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    for rank, shared in adapter_bases(model).items():
        assert all(torch.equal(a, b) for a, b in zip(shared.buffers(), bases[rank], strict=True))


@every_variant
def test_merged_inference_is_the_base_layers_work(variant):
    """The same operations, none more: goal (e) of docs/performance.md, without a clock."""

    def operations(model: Network) -> list[str]:
        with (
            torch.inference_mode(),
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        ):
            model(inputs(model))
        return [event.name for event in profile.events()]

    model = adapted("linear_tall", variant)
    unmerged, base = operations(model), operations(plain("linear_tall"))
    assert operations(merge_adapter(model)) == base
    assert len(unmerged) > len(base)


@every_variant
def test_autocast(variant):
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        layer_output = model.layer(x)
    assert layer_output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.1)
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in adapter_parameters(model))


@every_variant
def test_autocast_leaves_float64_alone(variant):
    model = perturb(adapted("linear_tall", variant)).double()
    x = inputs(model, torch.float64)
    expected = model.layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.layer(x), expected, rtol=1e-9, atol=1e-9)


@every_variant
def test_meta_device(variant):
    with torch.device("meta"):
        model = Network(nn.Linear(11, 17))
    inject_adapter(model, config_of(variant), ("layer",))
    assert all(parameter.is_meta for parameter in adapter_parameters(model))
    assert all(buffer.is_meta for shared in adapter_bases(model).values() for buffer in shared.buffers())
    assert count_parameters(model).per_layer == count_parameters(adapted("linear_tall", variant)).per_layer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_variant
def test_device_moves(variant):
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    model.cuda()
    assert all(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers()))
    torch.testing.assert_close(model(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    injected = inject_adapter(plain("linear_tall").cuda(), config_of(variant), ("layer",))
    assert all(tensor.is_cuda for tensor in (*injected.parameters(), *injected.buffers()))
    assert torch.equal(model.cpu()(x), expected)


@every_combination
@every_variant
def test_copies_answer_alike_and_share_nothing(kind, variant):
    model = perturb(adapted(kind, variant))
    x = inputs(model)
    expected = model(x)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(x), expected)
        with torch.no_grad():
            for parameter in adapter_parameters(duplicate):
                parameter.zero_()
        assert torch.equal(model(x), expected)
        unload_adapter(duplicate)
        assert not adapter_layers(duplicate) and adapter_layers(model)


@every_variant
def test_bases_are_one_copy_that_the_state_dict_leaves_out(variant):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 17), nn.ReLU(), nn.Linear(17, 11), nn.Linear(11, 11))
    inject_adapter(model, config_of(variant), "all-linear")
    for duplicate in (model, copy.deepcopy(model), copy.deepcopy(model).double(), pickle.loads(pickle.dumps(model))):
        updates = [layer.update for layer in adapter_layers(duplicate).values()]
        bases = {id(update.bases): update.bases for update in updates if hasattr(update, "bases")}
        assert len(bases) == len(adapter_bases(duplicate)) <= 1
        shared = [buffer for b in bases.values() for buffer in b.buffers()]
        assert len(list(duplicate.buffers())) == len(shared)
        assert all(buffer.element_size() <= 2 for buffer in shared)
        assert duplicate.state_dict().keys() == dict(duplicate.named_parameters()).keys()


@every_variant
def test_random_matrices_come_from_the_seed_alone(variant):
    config = config_of(variant)
    if not hasattr(config, "seed"):
        pytest.skip("has no frozen random matrices")

    def output(seed: int, global_seed: int) -> Tensor:
        model = plain("linear_tall")
        torch.manual_seed(global_seed)
        inject_adapter(model, config_of(variant, seed=seed), ("layer",))
        return perturb(model)(inputs(model))

    assert torch.equal(output(0, 1), output(0, 2))
    assert not torch.allclose(output(0, 1), output(3, 1), atol=1e-3)


@every_variant
def test_compile_aot_eager(variant):
    torch._dynamo.reset()
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in adapter_parameters(model)]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    output = compiled(x)
    output.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(adapter_parameters(model), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compile_inductor():
    torch._dynamo.reset()
    model = perturb(adapted("linear_tall", "randlora"))
    x = inputs(model)
    torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_rank_of_the_update(kind):
    """The paper's central claim: RandLoRA's update has full rank, LoRA's at most r; in float64.

    The random update is ill-conditioned (condition numbers up to 1e6), hence a relative threshold of 1e-10. Sparse
    bases lose the directions in which the one shared A has a column of zeros.
    """

    def rank(variant: str) -> tuple[int, Network]:
        model = perturb(adapted(kind, variant).double())
        values = torch.linalg.svdvals(model.layer.update.delta_weight().detach())
        return int((values > 1e-10 * values[0]).sum()), model

    for variant in ("randlora", "randlora_normal", "randlora_gamma_zero", "randlora_blocks", "randlora_blocks_of_two"):
        assert rank(variant)[0] == 11
    for variant in ("lora", "rslora", "vera", "nola"):
        assert rank(variant)[0] == RANK
    sparse_rank, model = rank("randlora_sparse")
    assert RANK < sparse_rank == can_train(model, "randlora_gamma").sum() < 11


@every_variant
def test_training_changes_the_adapter_and_never_the_frozen_weights(variant):
    model = adapted("linear_wide", variant)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    x = inputs(model)
    target = torch.randn(2, 5, model.out_features, generator=torch.Generator().manual_seed(3))
    optimiser = torch.optim.AdamW(adapter_parameters(model), lr=1e-2, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = []
    for _ in range(12):
        loss = (model(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert (
            torch.equal(parameter, frozen[name])
            if name in frozen
            else torch.equal(parameter != before[name], can_train(model, name).expand_as(parameter))
        )
