"""The Triton kernels for bases in groups against products in float64: in Triton's interpreter, and on a GPU.

The interpreter has to be chosen before Triton is imported: a child runs this file in it, on a CPU.
"""

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from layer_operands import call, oracle_delta
from test_blocks import grouped
from torch import Tensor
from torch.nn import functional as F
from triton_interpreter import INTERPRETED, check_in_interpreter, outside_of_it

from randlora_core import ops
from randlora_core.ops import products, triton_kernels
from randlora_core.ops.blocks import b_blocks

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
on_each_device = pytest.mark.parametrize("device", ["cpu" if INTERPRETED else pytest.param("cuda", marks=GPU)])

# Dtype -> the error relative to a product of the same factors in float64; the interpreter has no bfloat16.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3} | ({} if INTERPRETED else {torch.bfloat16: 5e-3})
in_each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)

# (tokens, columns, groups, rows of a run, runs): more of each than a program takes at a time, and less.
SIZES = [(33, 70, 2, 35, 1), (7, 100, 6, 17, 1), (300, 50, 3, 1, 40), (40, 130, 10, 13, 1), (1, 40, 5, 4, 2)]
in_each_size = pytest.mark.parametrize("size", SIZES)


@pytest.fixture
def kernels():
    """The kernels' module, which is imported where they run: the interpreter has to be chosen before."""
    return import_module("randlora_core.ops.triton_blocks")


@pytest.fixture
def by_triton(monkeypatch):
    """Has every product with blocks computed by the kernels, whatever its size, and refuses torch's."""

    def refuse(*arguments):
        raise AssertionError("computed by torch")

    for name in ("split", "join"):
        monkeypatch.setattr(products, name, refuse)
    monkeypatch.setattr(products, "by_triton", lambda x, columns, rows, tokens: True)


def by_group(x: Tensor, groups: int) -> Tensor:
    """The columns of (T, columns) sorted, in float64: (g, T, w), filled up with zeros."""
    padded = F.pad(x.double(), (0, -x.shape[1] % groups))
    return torch.stack([padded[:, group::groups] for group in range(groups)])


def rows_by_group(groups: int, run: int, runs: int) -> Tensor:
    """The rows of inner that each group has: (g, runs * run)."""
    return torch.tensor([[(s * groups + q) * run + j for s in range(runs) for j in range(run)] for q in range(groups)])


def operands(size: tuple, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x as a slice, which is to be read in place, inner, and a factor whose filling must have no effect."""
    tokens, columns, groups, run, runs = size
    x = torch.randn(tokens, columns + 3, device=device).to(dtype)[:, :columns]
    inner = torch.randn(groups * runs * run, tokens, device=device).to(dtype)
    factor = torch.randn(groups, runs, run, -(-columns // groups), device=device).to(dtype)
    return x, inner, factor, rows_by_group(groups, run, runs).to(device)


def check(found: Tensor, expected: Tensor, dtype: torch.dtype, several: int = 1) -> None:
    """Compares with a product of the same factors in float64, or with the outcome of several products."""
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= several * TOLERANCES[dtype] * expected.norm()


@on_each_device
@in_each_dtype
@in_each_size
def test_into(size, dtype, device, kernels):
    x, inner, factor, rows = operands(size, dtype, device)
    expected = torch.empty_like(inner, dtype=torch.float64)
    expected[rows] = factor.double().flatten(1, 2) @ by_group(x, len(factor)).transpose(1, 2)
    found = kernels.into(x, factor)
    assert found.dtype == dtype
    check(found, expected, dtype)
    check(kernels.into(x.T.contiguous().T, factor), expected, dtype)
    check(kernels.into(x[:1].expand_as(x), factor), expected[:, :1].expand_as(expected), dtype)


@on_each_device
@in_each_dtype
@in_each_size
def test_out_of(size, dtype, device, kernels):
    x, inner, factor, rows = operands(size, dtype, device)
    parts = inner.double()[rows].transpose(1, 2) @ factor.double().flatten(1, 2)
    expected = parts.permute(1, 2, 0).flatten(1)[:, : x.shape[1]]
    found = kernels.out_of(inner, factor, x.shape[1])
    assert found.dtype == dtype
    assert found.is_contiguous()
    check(found, expected, dtype)
    bias = 3 * torch.randn(x.shape[1], device=device).to(dtype)
    check(kernels.out_of(inner, factor, x.shape[1], bias), expected + bias.double(), dtype)


@on_each_device
@in_each_dtype
@in_each_size
def test_gradient_of_scaled_a(size, dtype, device, kernels):
    x, inner, factor, rows = operands(size, dtype, device)
    expected = (inner.double()[rows] @ by_group(x, len(factor))).view(factor.shape)
    found = kernels.gradient_of_scaled_a(inner, x, len(factor), factor.shape[2])
    assert found.dtype == torch.float32
    check(found, expected, dtype)


@on_each_device
@pytest.mark.parametrize("columns", [40, 37])
def test_b_is_read_in_place(columns, device, kernels):
    """B's factor is a view of another layout than the scaled A's, and a slice of a larger B."""
    stored = torch.randn(columns + 2, 30, device=device)[:columns, :12]
    x, factor = torch.randn(50, columns, device=device), b_blocks(stored, 4)
    expected = torch.empty(48, 50, dtype=torch.float64, device=device)
    expected[rows_by_group(4, 1, 12)] = factor[:, :, 0].double() @ by_group(x, 4).transpose(1, 2)
    check(kernels.into(x, factor), expected, torch.float32)


@on_each_device
@in_each_dtype
@pytest.mark.parametrize(("rank", "groups"), [(3, 3), (4, 2), (12, 12)])
@pytest.mark.parametrize("shape", [(50, 42), (42, 50), (48, 48), (37, 70)])
def test_a_layer_and_all_its_gradients_equal_those_of_the_dense_matrices(shape, rank, groups, dtype, device, by_triton):
    dense, blocks = grouped(shape, rank, groups)
    x, weight, bias, upstream = (
        torch.randn(*size).to(dtype) for size in ((45, shape[1]), shape, shape[:1], (45, shape[0]))
    )
    exact = [x.double().requires_grad_(), dense["lambda_"], dense["gamma"], bias.double().requires_grad_()]
    expected = F.linear(exact[0], weight.double() + oracle_delta(shape, **dense), exact[3])
    expected_grads = torch.autograd.grad(expected, exact, upstream.double())

    given, x, bias = moved(blocks, device), x.to(device).requires_grad_(), bias.to(device).requires_grad_()
    output = call(x, given, weight.to(device), bias, "activation")
    grads = torch.autograd.grad(output, (x, given["lambda_"], given["gamma"], bias), upstream.to(device))
    for found, known in zip((output, *grads), (expected, *expected_grads), strict=True):
        check(found.cpu(), known, dtype, several=4)


def moved(given: dict, device: str) -> dict:
    """A layer's operands in float32 on the device, those that train as leaves of their own."""
    copies = {name: value.detach().to(device).float() for name, value in given.items() if isinstance(value, Tensor)}
    return given | copies | {name: copies[name].requires_grad_() for name in ("lambda_", "gamma")}


@on_each_device
@pytest.mark.parametrize("shape", [(50, 42), (42, 50)])
def test_no_tokens(shape, device, by_triton):
    given = moved(grouped(shape, 4, 4)[1], device)
    x = torch.randn(0, shape[1], device=device, requires_grad=True)
    output = call(x, given, torch.randn(shape, device=device), None, "activation")
    assert output.shape == (0, shape[0])
    grads = torch.autograd.grad(output.sum(), (x, given["lambda_"], given["gamma"]))
    assert grads[0].shape == x.shape
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


@outside_of_it
def test_this_file_in_the_interpreter():
    check_in_interpreter(__file__)


def test_they_are_off_at_first_and_then_for_32_and_16_bits_on_cuda(monkeypatch):
    monkeypatch.setattr(triton_kernels, "_enabled", triton_kernels._enabled)  # put back afterwards
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    tensors = [SimpleNamespace(is_cuda=True, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    others = [SimpleNamespace(is_cuda=True, dtype=torch.float64), SimpleNamespace(is_cuda=False, dtype=torch.float32)]
    assert not any(map(triton_kernels.uses_triton, tensors + others))
    ops.use_triton(True)
    assert all(map(triton_kernels.uses_triton, tensors))
    assert not any(map(triton_kernels.uses_triton, others))
    ops.use_triton(False)
    assert not any(map(triton_kernels.uses_triton, tensors))


@pytest.mark.parametrize(
    ("dtype", "columns", "rows", "tokens", "taken"),
    [
        (torch.bfloat16, 2048, 2048, 8192, True),
        (torch.float16, 2048, 4096, 9000, True),
        (torch.bfloat16, 2040, 4096, 8192, False),
        (torch.bfloat16, 4096, 2040, 8192, False),
        (torch.bfloat16, 4096, 4096, 8191, False),
        (torch.float32, 4096, 4096, 8192, False),
        (torch.float64, 2048, 2048, 8192, False),
    ],
)
def test_they_compute_large_products_of_16_bits_and_no_others(dtype, columns, rows, tokens, taken, monkeypatch):
    x = SimpleNamespace(dtype=dtype)
    monkeypatch.setattr(products, "uses_triton", lambda tensor: True)  # on, and on CUDA
    assert products.by_triton(x, columns, rows, tokens) is taken
    monkeypatch.setattr(products, "uses_triton", lambda tensor: False)
    assert not products.by_triton(x, columns, rows, tokens)


@pytest.mark.parametrize("taken", [True, False])
def test_every_product_with_blocks_goes_to_the_kernels_where_the_rule_says_so(taken, monkeypatch):
    names = ("into", "out_of", "gradient_of_scaled_a")
    stand_in = SimpleNamespace(**{name: lambda *arguments: "computed by a kernel" for name in names})
    monkeypatch.setattr(ops, "triton_blocks", stand_in, raising=False)
    monkeypatch.setitem(sys.modules, "randlora_core.ops.triton_blocks", stand_in)
    asked = []
    monkeypatch.setattr(products, "by_triton", lambda tensor, *sizes: asked.append(sizes) or taken)
    columns, rows, tokens, groups = 40, 24, 7, 4
    x, inner, factor = torch.ones(tokens, columns), torch.ones(rows, tokens), torch.ones(groups, 1, 6, 10)
    results = (
        products.into(x, factor),
        products.out_of(inner, factor, columns),
        products.gradient_of_scaled_a(inner, x, groups, 6),
    )
    assert [isinstance(result, str) for result in results] == [taken] * 3
    assert asked == [(columns, rows, tokens)] * 3


def test_compiled_models_take_torchs_products(monkeypatch):
    monkeypatch.setattr(triton_kernels, "_enabled", True)
    tensor = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert triton_kernels.uses_triton(tensor)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not triton_kernels.uses_triton(tensor)
