"""What every method promises on every kind of layer; the methods and layers are those of `contract_models`."""

import copy
import math

import pytest
import torch
from contract_models import (
    LAYERS,
    RANK,
    Network,
    adapted,
    can_train,
    config_of,
    every_combination,
    every_variant,
    inputs,
    perturb,
    plain,
)
from torch import Tensor

from randlora_core import (
    METHODS,
    adapter_parameters,
    count_parameters,
    disable_adapter,
    inject_adapter,
    merge_adapter,
    unload_adapter,
    unmerge_adapter,
)


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
