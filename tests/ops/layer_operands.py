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


def call(x: Tensor, given: dict, weight: Tensor, bias: Tensor | None, path: str, joint: bool = True) -> Tensor:
    return ops.randlora_linear(
        x,
        **given,
        base=lambda x: F.linear(x, weight, bias),
        weight=(lambda: weight) if joint else None,
        bias=bias,
        path=path,
    )
