"""Every path against the paper's sum, in values and gradients, and what it saves."""

import pytest
import torch
from layer_operands import SHAPES, call, check_output_and_gradients, operands, oracle_delta
from torch import Tensor
from torch.nn import functional as F

from randlora_core import ops
from randlora_core.ops import cost
from randlora_core.ops.cost import PATHS

CPU = torch.device("cpu")


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_papers_sum(shape, path, joint):
    given = operands(shape)
    leaves = (given["lambda_"], given["gamma"])
    check_output_and_gradients(given, oracle_delta(shape, **given), leaves, path, joint)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(shape, path, with_bias):
    given = operands(shape)
    weight = torch.randn(shape, dtype=torch.float64)
    bias = torch.randn(shape[0], dtype=torch.float64, requires_grad=True) if with_bias else None
    x = torch.randn(5, shape[1], dtype=torch.float64, requires_grad=True)

    def function(x, lambda_, gamma, *bias):
        vectors = given | {"lambda_": lambda_, "gamma": gamma}
        return call(x, vectors, weight, bias[0] if bias else None, path)

    leaves = (x, given["lambda_"], given["gamma"]) + ((bias,) if with_bias else ())
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("trained", [("x",), ("lambda_",), ("gamma",), ("lambda_", "gamma"), ("x", "gamma")])
def test_only_what_needs_a_gradient_gets_one(path, trained):
    shape = (6, 10)
    given = operands(shape)
    tensors = {"x": torch.randn(4, shape[1], dtype=torch.float64), **given}
    for name in ("x", "lambda_", "gamma"):
        tensors[name] = tensors[name].detach().requires_grad_(name in trained)
    x, vectors = tensors["x"], {name: tensors[name] for name in given}
    weight = torch.randn(shape, dtype=torch.float64)
    expected = torch.autograd.grad(
        F.linear(x, weight + oracle_delta(shape, **vectors)).square().sum(), [tensors[name] for name in trained]
    )
    call(x, vectors, weight, None, path).square().sum().backward()
    for name in ("x", "lambda_", "gamma"):
        assert (tensors[name].grad is not None) == (name in trained)
    for name, grad in zip(trained, expected, strict=True):
        torch.testing.assert_close(tensors[name].grad, grad)


def saved_by(function) -> list[Tensor]:
    """The tensors that autograd keeps of a computation, one for each storage."""
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = function()  # noqa: F841  (freed storages would be handed out again)
    return list(saved.values())


@pytest.mark.parametrize("path", ["weight", "two_products", "activation"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("trains", [True, False])
def test_saves_the_input_or_its_smaller_product_with_b(shape, path, trains):
    given = operands(shape, dtype=torch.float32)
    for name in ("lambda_", "gamma"):
        given[name].requires_grad_(trains)
    weight, x = torch.randn(shape), torch.randn(64, shape[1], requires_grad=True)
    saved = saved_by(lambda: call(x, given, weight, None, path))
    frozen = [given["lambda_"], given["gamma"], given["basis_a"], given["basis_b"], weight]
    known = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    others = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in known]
    if not trains:
        assert others == []
    elif path == "activation" and shape[0] < shape[1]:
        (through_b,) = others
        torch.testing.assert_close(through_b, x.detach() @ given["basis_b"].flatten(1))
        assert through_b.numel() < x.numel()
    else:
        assert [tensor.untyped_storage().data_ptr() for tensor in others] == [x.untyped_storage().data_ptr()]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_layouts_and_a_second_backward_pass(shape, path):
    """One token without a batch, x and the output's gradient as transposed views, and a graph that is kept."""
    given = operands(shape)
    weight, bias = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    exact = weight + oracle_delta(shape, **given).detach()
    token = torch.randn(shape[1], dtype=torch.float64)
    torch.testing.assert_close(call(token, given, weight, bias, path), F.linear(token, exact, bias))

    x = torch.randn(4, 2, shape[1], dtype=torch.float64).transpose(0, 1).requires_grad_()
    upstream = torch.randn(shape[0], 4, 2, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous() and not upstream.is_contiguous()
    leaves = (x, given["lambda_"], given["gamma"])
    expected = torch.autograd.grad(F.linear(x, weight + oracle_delta(shape, **given), bias), leaves, upstream)
    output = call(x, given, weight, bias, path)
    for _ in range(2):
        for grad, known in zip(torch.autograd.grad(output, leaves, upstream, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(grad, known)


def test_vectors_of_different_types_meet_in_the_wider_one():
    given = operands((6, 10))
    narrow = given["lambda_"].detach().float()
    with torch.no_grad():
        m = ops.scaled_a(narrow, given["gamma"], given["basis_a"], 0.3)
    assert m.dtype == torch.float64
    torch.testing.assert_close(m, ops.scaled_a(narrow, given["gamma"], given["basis_a"], 0.3).detach())


@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (128, 128)])
def test_peak_memory_of_a_16_bit_layer_is_loras(shape):
    """Goal (c) on one layer, where the order of the backward pass and what is saved both show in bytes."""
    from randlora_core.benchmarking.cases import layer_case
    from randlora_core.benchmarking.measure import measure_memory

    case = layer_case(*shape, 4096, rank=8, half=True)
    peaks = {name: peak for name, (peak, _) in measure_memory(case, ("lora", "randlora"), device=CPU).items()}
    assert peaks["randlora"] <= 1.02 * peaks["lora"]


def test_force_path_reaches_every_layer_and_ends(monkeypatch):
    seen = []
    choose = cost.choose

    def record(problem, path="auto"):
        seen.append(path)
        return choose(problem, path)

    monkeypatch.setattr(cost, "choose", record)
    given, weight, x = operands((6, 10)), torch.randn(6, 10, dtype=torch.float64), torch.randn(3, 10).double()
    with ops.force_path("activation"):
        call(x, given, weight, None, path=None)
        call(x, given, weight, None, path="weight")
    call(x, given, weight, None, path=None)
    assert seen == ["activation", "weight", "auto"]


@pytest.mark.parametrize("attempt", ["context", "argument"])
def test_unknown_paths_are_refused(attempt):
    with pytest.raises(ValueError, match="unknown path 'fast'; known: auto, activation, weight, two_products"):
        if attempt == "context":
            with ops.force_path("fast"):
                pass
        else:
            given = operands((6, 10))
            call(torch.randn(3, 10).double(), given, torch.randn(6, 10).double(), None, "fast")
