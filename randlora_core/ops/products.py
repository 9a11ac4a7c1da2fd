"""Multiplies by the two factors of RandLoRA's update, the scaled A and B transposed, dense or in blocks.

A dense factor is (k, columns). One in blocks has four axes, see `randlora_core.ops.blocks`, and costs 1 / g of the
work: a product batched over the groups. What is between the two factors of an update, x M^T or x B, is called inner:
(T, k) between dense ones, (k, T) between blocks, where its rows can be sorted by group without a copy.

By the weight only B is in blocks. The scaled A is dense then, since its columns are those of the weight.

By the activations Triton's kernels (`randlora_core.ops.triton_blocks`) compute with blocks where they are turned on and
the product is one of those that `by_triton` names.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from randlora_core.ops.blocks import b_blocks, join, split
from randlora_core.ops.cost import HALF
from randlora_core.ops.triton_kernels import uses_triton

LEAST_TRITON_SIDE, LEAST_TRITON_TOKENS = 2048, 8192
"""The least columns, and rows of inner, and the least tokens of products that Triton's kernels compute with blocks."""


def by_triton(x: Tensor, columns: int, rows: int, tokens: int) -> bool:
    """Tells whether Triton's kernels compute the product between x (T, columns) and inner (rows, T), both like `x`.

    They do, once turned on, in 16 bits where all three sizes reach the limits. On an NVIDIA H200 in bfloat16 at 4096
    columns and rows a layer's whole step took 1.04, 1.02 and 0.73 of torch's time at 640, 3,200 and 12,800 tokens. A
    step's five products took 0.94 to 2.3 of it at 768 rows, and 1.2 to 2.6 in float32. The limits lie between sizes
    that were measured, and float16 is taken for bfloat16's equal.
    """
    large = min(columns, rows) >= LEAST_TRITON_SIDE and tokens >= LEAST_TRITON_TOKENS
    return large and x.dtype in HALF and uses_triton(x)


def flat_b(basis_b: Tensor, dtype: torch.dtype) -> Tensor:
    """Gives Bf (D, k), or its blocks (D, n t), in `dtype`, as a view where that is B's own dtype."""
    return basis_b.flatten(1).to(dtype)


def b_factor(basis_b: Tensor, dtype: torch.dtype, groups: int) -> Tensor:
    """Gives B transposed as a factor: (k, D), or (g, n t, 1, w) where there are groups."""
    flat = flat_b(basis_b, dtype)
    return flat.T if groups == 1 else b_blocks(flat, groups)


def into(x: Tensor, factor: Tensor) -> Tensor:
    """Computes x times the factor transposed, for x (T, columns): inner."""
    if factor.dim() == 2:
        return x @ factor.T
    if by_triton(x, x.shape[1], factor.shape[:3].numel(), len(x)):
        from randlora_core.ops import triton_blocks

        return triton_blocks.into(x, factor)
    inner = torch.bmm(factor.flatten(1, 2), split(x, len(factor)).transpose(1, 2))
    return inner.unflatten(1, factor.shape[1:3]).transpose(0, 1).flatten(0, 2)


def out_of(inner: Tensor, factor: Tensor, columns: int, bias: Tensor | None = None) -> Tensor:
    """Computes inner times the factor, plus a bias: (T, columns)."""
    if factor.dim() == 2:
        return inner @ factor if bias is None else torch.addmm(bias, inner, factor)
    if by_triton(inner, columns, *inner.shape):
        from randlora_core.ops import triton_blocks

        return triton_blocks.out_of(inner, factor, columns, bias)
    groups, _, rows, _ = factor.shape
    parts = torch.bmm(_sorted(inner, groups, rows).transpose(1, 2), factor.flatten(1, 2))
    result = join(parts, columns)
    return result if bias is None else result.add_(bias)


def gradient_of_scaled_a(inner: Tensor, x: Tensor, groups: int, num_bases: int) -> Tensor:
    """Computes the gradient of the scaled A, (k, d) or in blocks (g, t, n, w), from inner on B's side and x (T, d)."""
    if groups == 1:
        return inner.T @ x
    if by_triton(x, x.shape[1], *inner.shape):
        from randlora_core.ops import triton_blocks

        return triton_blocks.gradient_of_scaled_a(inner, x, groups, num_bases)
    rows = _sorted(inner, groups, num_bases)
    return torch.bmm(rows, split(x, groups)).unflatten(1, (-1, num_bases))


def _sorted(inner: Tensor, groups: int, rows: int) -> Tensor:
    """Sorts inner (k, T) by the groups of a factor (g, s, rows, w): (g, s rows, T)."""
    return inner.unflatten(0, (-1, groups, rows)).transpose(0, 1).flatten(1, 2)


def update_of(m: Tensor, b: Tensor, larger: int, *, transposed: bool) -> Tensor:
    """Computes B M, (D, d) for D = `larger`, or transposed (d, D); differentiable in the scaled A m (k, d)."""
    if b.dim() == 2:
        return m.T @ b if transposed else b.T @ m
    by_group = torch.bmm(b[:, :, 0].transpose(1, 2), _rows_by_group(m, len(b)))
    update = by_group.transpose(0, 1).flatten(0, 1)[:larger]
    return update.T if transposed else update


def plus_update(weight: Tensor, m: Tensor, b: Tensor, *, transposed: bool) -> Tensor:
    """Computes weight + update, (out, in), with no tensor of that size beside the result."""
    if b.dim() == 2:
        return torch.addmm(weight, m.T, b) if transposed else torch.addmm(weight, b.T, m)
    total = (weight.T if transposed else weight).clone(memory_format=torch.contiguous_format)  # (D, d)
    for group, rows in enumerate(_rows_by_group(m, len(b))):
        # A batched product would need a copy of the total: its batches lie interleaved, and not one after another.
        part = total[group :: len(b)]
        part.addmm_(b[group, :, 0, : len(part)].T, rows)
    return total.T if transposed else total


def through_update(grad_update: Tensor, b: Tensor) -> Tensor:
    """Computes the gradient B^T G of the dense scaled A, (k, d), from that of the update, G (D, d)."""
    if b.dim() == 2:
        return b @ grad_update
    groups, _, _, width = b.shape
    rows = F.pad(grad_update, (0, 0, 0, width * groups - len(grad_update)))
    return torch.bmm(b[:, :, 0], _rows_by_group(rows, groups)).transpose(0, 1).flatten(0, 1)


def _rows_by_group(z: Tensor, groups: int) -> Tensor:
    """Sorts rows, group q having those with index mod g == q: a view (g, rows / g, columns)."""
    return z.unflatten(0, (-1, groups)).transpose(0, 1)
