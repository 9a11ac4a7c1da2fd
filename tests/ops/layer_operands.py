"""Random operands of a layer, the paper's sum as an oracle for its update, and the layer's output by a path."""

import torch
from torch import Tensor
from torch.nn import functional as F

from randlora_core import ops

SHAPES = [(10, 6), (6, 10), (8, 8), (7, 5)]  # (out, in); rank 3 divides 6 only


def operands(shape: tuple[int, int], rank: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict:
    """Random operands of a layer; the bases are slices of larger matrices, as in a model."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    larger, smaller = max(shape), min(shape)
    n = -(-smaller // rank)
    return {
        "lambda_": draw(rank, n).requires_grad_(),
        "gamma": draw(n, smaller).requires_grad_(),
        "basis_a": draw(rank, smaller + 3)[:, :smaller],
        "basis_b": draw(larger + 2, n + 1, rank)[:larger, :n],
        "scale": 0.3,
    }


def oracle_delta(shape, lambda_, gamma, basis_a, basis_b, scale) -> Tensor:
    """The update entry by entry: column c of B, flattened, meets row c of the scaled A in PEFT's two orders."""
    rank, n = lambda_.shape
    pairs_b = [(j, k) for j in range(n) for k in range(rank)]
    pairs_a = [(k, j) for k in range(rank) for j in range(n)]
    total = 0.0
    for (j, k), (row, basis) in zip(pairs_b, pairs_a, strict=True):
        column = basis_b[:, j, k].to(lambda_.dtype)
        total = total + torch.outer(column, lambda_[row, basis] * basis_a[row].to(lambda_.dtype) * gamma[basis])
    total = scale * total
    return total.T if shape[0] < shape[1] else total


def check_output_and_gradients(
    given: dict, delta: Tensor, leaves: tuple[Tensor, Tensor], path: str, joint: bool
) -> None:
    """Compares a layer with `F.linear` of weight + delta: output, and gradients of the input, lambda and gamma.

    Args:
        given: The update's operands, as `call` takes them.
        delta: The same update, (out, in), as it depends on `leaves`.
        leaves: Lambda and gamma.
        path: As `call`.
        joint: As `call`.
    """
    shape = delta.shape
    weight, bias = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    x = torch.randn(2, 4, shape[1], dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 4, shape[0], dtype=torch.float64)
    expected = F.linear(x, weight + delta, bias)
    expected_grads = torch.autograd.grad(expected, (x, *leaves), upstream)
    output = call(x, given, weight, bias, path, joint)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous()
    for grad, expected_grad in zip(torch.autograd.grad(output, (x, *leaves), upstream), expected_grads, strict=True):
        assert expected_grad.abs().max() > 1e-3
        torch.testing.assert_close(grad, expected_grad)


def call(x: Tensor, given: dict, weight: Tensor, bias: Tensor | None, path: str, joint: bool = True) -> Tensor:
    return ops.randlora_linear(
        x,
        **given,
        base=lambda x: F.linear(x, weight, bias),
        weight=(lambda: weight) if joint else None,
        bias=bias,
        path=path,
    )
