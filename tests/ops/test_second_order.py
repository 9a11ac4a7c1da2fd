"""Gradients of gradients: refused by the methods with an autograd function of their own, right for all others.

Plain torch tells which second derivatives are not zero, from the weight that `delta_weight` gives.
"""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from randlora_core import DoRAConfig, LoRAConfig, NoLAConfig, RandLoRAConfig, VeRAConfig, inject_adapter, ops
from randlora_core.adapters.dora import MagnitudeUpdate, row_norms

REFUSED = {
    "randlora": RandLoRAConfig(rank=3),
    "randlora, bases made again": RandLoRAConfig(rank=3, store_bases=False),
    "randlora, packed bases": RandLoRAConfig(rank=3, basis="sparse", packed_bases=True),
    "randlora, few bases": RandLoRAConfig(rank=3, num_bases=1),
    "randlora, dropout": RandLoRAConfig(rank=3, dropout=0.5),
    "randdora": RandLoRAConfig(rank=3, magnitude=True),
    "dora": DoRAConfig(rank=3),
}
RIGHT = {
    "lora": LoRAConfig(rank=3),
    "rslora": LoRAConfig(rank=3, rank_stabilized=True),
    "dora, dropout": DoRAConfig(rank=3, dropout=0.5),
    "vera": VeRAConfig(rank=4),
    "nola": NoLAConfig(rank=3, num_bases_a=5, num_bases_b=4),
    "nola, shifted": NoLAConfig(rank=1, num_bases_a=5, num_bases_b=4, shifted=True),
    "randlora_a": RandLoRAConfig(rank=3, num_bases=4, distinct_a=True),
    "randlora_a, bases made again": RandLoRAConfig(rank=3, num_bases=4, distinct_a=True, store_bases=False),
}
LOSSES = {
    "sum": torch.sum,  # its gradient is a constant, which autograd does not track
    "cubes": lambda y: y.pow(3).sum(),
}
MESSAGE = "this gradient cannot be differentiated again"
SHAPES = [(10, 7), (7, 10)]  # (out, in)


def layer(config, shape, dtype=torch.float64) -> nn.Module:
    """An adapted layer away from its start, with a bias that trains."""
    torch.manual_seed(0)
    model = inject_adapter(nn.Sequential(nn.Linear(shape[1], shape[0], dtype=dtype)), config, ["0"])
    model[0].bias.requires_grad_()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def plain(model: nn.Module, x: Tensor) -> Tensor:
    """The output by operations of torch's that have derivatives of every order."""
    adapted, update = model[0], model[0].update
    if update.training and update.config.dropout:
        return F.linear(x, adapted.base.weight, adapted.bias) + F.linear(update.dropout(x), update.delta_weight())
    weight = adapted.base.weight + update.delta_weight()
    if isinstance(update, MagnitudeUpdate):
        weight = (update.lora_magnitude_vector / row_norms(weight.detach()))[:, None] * weight
    return F.linear(x, weight, adapted.bias)


def leaves_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"x": x} | {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradient(forward, x: Tensor, loss, leaf: Tensor) -> Tensor:
    torch.manual_seed(1)  # dropout's mask
    return torch.autograd.grad(loss(forward(x)), leaf, create_graph=True)[0]


def contracted(gradient: Tensor) -> Tensor:
    return (gradient * torch.linspace(0.5, 1.5, gradient.numel(), dtype=gradient.dtype).view_as(gradient)).sum()


def second_derivative(value: Tensor, leaf: Tensor) -> Tensor | None:
    return torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)[0] if value.requires_grad else None


def assert_refused(first: Tensor, leaf: Tensor) -> None:
    """In every form, alone and beside a term that has a derivative and would hide that another one is missing."""
    values = (contracted(first), contracted(first) + leaf.square().sum())
    for value in values:
        for form in (
            lambda value=value: torch.autograd.grad(value, leaf, retain_graph=True),
            lambda value=value: torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True),
            lambda value=value: torch.autograd.grad(value, leaf, create_graph=True, allow_unused=True),
            lambda value=value: value.backward(inputs=[leaf], retain_graph=True),
            lambda value=value: value.backward(retain_graph=True),
        ):
            with pytest.raises(RuntimeError, match=MESSAGE):
                form()
    assert leaf.grad is None


def check_all_pairs(forward, oracle, leaves: dict[str, Tensor], x: Tensor, loss) -> set[tuple[str, str]]:
    """Compare with the oracle for each gradient and each variable; gives the pairs that are refused.

    What is not refused must be right, which it is where no function of ours has a part in it.
    """
    refused = set()
    for (one, first_leaf), (other, second_leaf) in itertools.product(leaves.items(), repeat=2):
        first, expected = (gradient(function, x, loss, first_leaf) for function in (forward, oracle))
        torch.testing.assert_close(first, expected)
        exact = second_derivative(contracted(expected), second_leaf)
        exact = torch.zeros_like(second_leaf) if exact is None else exact
        try:
            found = second_derivative(contracted(first), second_leaf)
        except RuntimeError:
            assert_refused(first, second_leaf)
            refused.add((one, other))
        else:
            torch.testing.assert_close(torch.zeros_like(exact) if found is None else found, exact)
    return refused


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("label", REFUSED)
def test_second_derivatives_that_are_not_zero_are_refused(label, shape, loss):
    model = layer(REFUSED[label], shape)
    x = torch.randn(2, 3, shape[1], dtype=torch.float64, requires_grad=True)
    leaves = leaves_of(model, x)
    refused = check_all_pairs(model, lambda x: plain(model, x), leaves, x, LOSSES[loss])
    trained = set(leaves) - {"x", "0.base.bias"}
    assert {("x", name) for name in trained} <= refused and {(name, "x") for name in trained} <= refused
    if loss == "cubes" and not REFUSED[label].dropout:
        assert len(refused) == len(leaves) ** 2  # none of them is zero


@pytest.mark.parametrize("path", ops.PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_every_path(path, shape):
    """Among them the one that keeps x B in the place of x."""
    model = layer(RandLoRAConfig(rank=3, num_bases=1), shape)
    x = torch.randn(6, shape[1], dtype=torch.float64, requires_grad=True)
    with ops.force_path(path):
        check_all_pairs(model, lambda x: plain(model, x), leaves_of(model, x), x, torch.sum)


@pytest.mark.parametrize("label", ["randlora", "randdora", "dora"])
@pytest.mark.parametrize("how", ["checkpoint", "autocast"])
def test_within_checkpoints_and_under_autocast(how, label):
    model = layer(REFUSED[label], (7, 10), torch.float32)
    x = torch.randn(6, 10, requires_grad=True)

    def forward(x):
        if how == "checkpoint":
            return checkpoint(model, x, use_reentrant=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            return model(x)

    trained = list(model[0].update.parameters())
    for first_leaf, second_leaf in [(x, parameter) for parameter in trained] + [
        (parameter, x) for parameter in trained
    ]:
        assert_refused(gradient(forward, x, torch.sum, first_leaf), second_leaf)


@pytest.mark.parametrize("label", REFUSED)
def test_by_the_function_transforms(label):
    model = layer(REFUSED[label], (7, 10)).eval()
    x = torch.randn(2, 10, dtype=torch.float64)

    def loss(x):
        return model(x).pow(3).sum()

    with pytest.raises(RuntimeError, match=MESSAGE):
        torch.autograd.functional.hessian(loss, x)
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.hessian(loss)(x)


@pytest.mark.parametrize("label", ["randlora", "dora"])
def test_of_a_compiled_model(label):
    torch._dynamo.reset()
    model = layer(REFUSED[label], (7, 10), torch.float32)
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(6, 10, requires_grad=True)
    parameter = next(iter(model[0].update.parameters()))
    first = gradient(compiled, x, torch.sum, x)
    torch.testing.assert_close(first, gradient(lambda x: plain(model, x), x, torch.sum, x))
    for value in (contracted(first), contracted(first) + parameter.square().sum()):
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            torch.autograd.grad(value, parameter, allow_unused=True)


@pytest.mark.parametrize("label", REFUSED)
def test_a_gradient_with_a_graph_serves_as_first_derivative(label):
    """`create_graph=True` by itself changes nothing: the gradient can be read, detached, and stepped with."""
    model = layer(REFUSED[label], (7, 10)).eval()
    x = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    leaves = list(leaves_of(model, x).values())
    expected = torch.autograd.grad(model(x).pow(3).sum(), leaves)
    found = torch.autograd.grad(model(x).pow(3).sum(), leaves, create_graph=True)
    for one, other, leaf in zip(found, expected, leaves, strict=True):
        assert torch.equal(one, other)
        (held,) = torch.autograd.grad((one.detach() * leaf.square()).sum(), leaf)
        torch.testing.assert_close(held, 2 * other * leaf)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("label", RIGHT)
def test_second_derivatives_of_the_other_methods_are_right(label, shape):
    model = layer(RIGHT[label], shape)
    x = torch.randn(3, shape[1], dtype=torch.float64, requires_grad=True)
    leaves = leaves_of(model, x)

    def function(x, *values):
        torch.manual_seed(1)  # dropout's mask
        return functional_call(model, dict(zip(list(leaves)[1:], values, strict=True)), (x,))

    if isinstance(model[0].update, MagnitudeUpdate):
        # Its norms carry no gradient, which finite differences would see: they are held.
        norms = model[0].update._norms(model[0].dense_weight())
        model[0].update._norms = lambda weight: norms
    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))
