"""RandLoRA's layers in a model: paths, checkpointing, compiling, copies, dropout, and layers that are not theirs."""

import copy
import itertools
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import RandLoRAConfig, inject_adapter, ops
from randlora_core.ops.cost import PATHS

BLOCKS = {"rank": 3, "groups": 3}


def two_layers(**settings) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12), nn.GELU(), nn.Linear(12, 12))
    inject_adapter(model, RandLoRAConfig(**{"rank": 5, **settings}), targets=["0", "2", "4"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    for batch in batches:
        (model(batch).square().sum() / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance) -> None:
    assert first.keys() == second.keys() and len(first) > 0
    for name in first:
        assert first[name].abs().max() > 0
        torch.testing.assert_close(first[name], second[name], **tolerance)


@pytest.mark.parametrize("settings", [{}, {"magnitude": True}, BLOCKS, {**BLOCKS, "magnitude": True}])
def test_paths_agree_in_a_model(settings):
    model, x = two_layers(**settings), torch.randn(9, 12)
    results = []
    for path in PATHS:
        with ops.force_path(path):
            results.append(gradients(model, x))
    for first, second in itertools.pairwise(results):
        assert_same(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, BLOCKS])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(path, reentrant, settings):
    from torch.utils.checkpoint import checkpoint

    model, x = two_layers(**settings), torch.randn(9, 12, requires_grad=True)
    with ops.force_path(path):
        expected = gradients(model, x)
        model.zero_grad()
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    actual = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    # A reentrant checkpoint computes the output without gradients first, for which "auto" may take another path.
    exact = path != "auto" or not reentrant
    assert_same(actual, expected, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}))


@pytest.mark.parametrize("settings", [{}, {"store_bases": False}, {"packed_bases": True, "basis": "sparse"}, BLOCKS])
def test_checkpointing_keeps_no_activation(settings):
    """Within a checkpoint nothing is kept until the backward pass, whether bases are stored or made again."""
    from torch.utils.checkpoint import checkpoint

    model, x, alive = two_layers(**settings), torch.randn(9, 12, requires_grad=True), []
    model[3].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    expected = gradients(model, x)
    output = model(x)
    assert alive[1]() is not None  # kept by the adapted layer behind it
    output = checkpoint(model, x, use_reentrant=False)
    assert alive[2]() is None
    model.zero_grad()
    output.square().sum().backward()
    assert_same({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, expected)


@pytest.mark.parametrize("path", PATHS)
def test_accumulated_micro_batches_equal_the_batch(path):
    model, x = two_layers(), torch.randn(8, 12)
    with ops.force_path(path):
        whole = gradients(model, x)
        parts = gradients(model, x[:4], x[4:])
    assert_same({name: 2 * grad for name, grad in parts.items()}, whole, rtol=1e-4, atol=1e-5)


def test_copies_keep_computing_the_same():
    model, x = two_layers(), torch.randn(5, 12)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(twin.double()(x.double()), model(x).double(), rtol=1e-5, atol=1e-5)


def test_dropout_acts_on_the_update_only():
    model = two_layers(dropout=0.5)
    layer, x = model[0], torch.ones(4000, 12)
    torch.manual_seed(3)
    output = layer(x)
    kept = x.clone()
    torch.manual_seed(3)
    kept = F.dropout(kept, 0.5)
    expected = layer.base(x) + kept @ layer.update.delta_weight().T
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    layer.eval()
    expected = F.linear(x, layer.base.weight + layer.update.delta_weight(), layer.base.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reason", ["hook", "trained_weight", "own_forward"])
def test_a_base_layer_with_a_life_of_its_own_is_called(reason):
    model, x = two_layers(), torch.randn(5, 12)
    layer, calls = model[0], []
    if reason == "hook":
        layer.base.register_forward_hook(lambda module, args, output: calls.append(1))
    elif reason == "own_forward":
        forward = layer.base.forward
        layer.base.forward = lambda x: calls.append(1) or forward(x)
    else:
        layer.base.weight.requires_grad_()
        calls.append(1)
    layer(x).sum().backward()
    assert calls == [1]
    assert (layer.base.weight.grad is not None) == (reason == "trained_weight")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("settings", [{}, BLOCKS])
@pytest.mark.parametrize("path", PATHS)
def test_compiled_whole_equals_eager(path, settings, autocast):
    model, x = two_layers(**settings), torch.randn(9, 12)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with ops.force_path(path), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(model, x)
        compiled(x).square().sum().backward()  # not zeroed: adds the same gradients once more
    actual = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if autocast else {"rtol": 1e-5, "atol": 1e-6}
    assert_same(actual, {name: 2 * grad for name, grad in expected.items()}, **tolerance)


@pytest.mark.parametrize("settings", [{}, BLOCKS])
def test_empty_batches(settings):
    model = two_layers(**settings)
    output = model(torch.randn(0, 12, requires_grad=True))
    output.sum().backward()
    assert output.shape == (0, 12)
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("basis", ["uniform", "sparse"])
def test_stored_types_of_the_bases_do_not_matter(basis):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20))
    inject_adapter(model, RandLoRAConfig(rank=5, basis=basis), targets=["0"])
    layer, x = model[0], torch.randn(30, 12)
    with torch.no_grad():
        layer.update.randlora_lambda.normal_()
    expected = F.linear(x, layer.base.weight + layer.update.delta_weight(), layer.base.bias)
    for path in PATHS:
        with ops.force_path(path):
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
