"""A linear layer with RandLoRA's update, by the two activation products of the paper's equation 4.

Legend (D >= d are the layer's larger and smaller side):

    lambda_   (r, n)      trained          basis_a   (r, d)       frozen, any dtype
    gamma     (n, d)      trained          basis_b   (D, n, r)    frozen, any dtype

    M  (n*r, d) = scale * lambda * A * gamma        rows in the order (rank, basis):    row k*n + j
    Bf (D, n*r) = B                                 columns in the order (basis, rank): column j*r + k
    delta = Bf M where the input is the smaller side (or both are equal), its transpose otherwise

The two flattening orders differ, as in PEFT: column c of Bf meets row c of M, so random column (j, k) is paired with
the row (k', j') for which j*r + k = k'*n + j'. The columns of B are independent and equally distributed, so that this
is a relabelling of them and the mathematics is equation 4's; adapters trained in PEFT need the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def scaled_a(lambda_: Tensor, gamma: Tensor, basis_a: Tensor, scale: float = 1.0) -> Tensor:
    """M (n*r, d) of the module's legend, in the dtype of the trained vectors and differentiable in them.

    The scale is part of it, so that a later cast to half precision does not flush small products to zero.
    """
    a = basis_a.to(lambda_.dtype)
    return ((scale * lambda_)[:, :, None] * a[:, None, :] * gamma[None]).flatten(0, 1)


def delta(
    lambda_: Tensor, gamma: Tensor, basis_a: Tensor, basis_b: Tensor, scale: float = 1.0, *, transposed: bool = False
) -> Tensor:
    """The update of the weight.

    Args:
        lambda_: (r, n).
        gamma: (n, d).
        basis_a: (r, d).
        basis_b: (D, n, r).
        scale: Factor on the update.
        transposed: Whether the output is the layer's smaller side.

    Returns:
        (D, d), or (d, D) if transposed; in the dtype of the trained vectors.
    """
    m = scaled_a(lambda_, gamma, basis_a, scale)
    update = basis_b.to(m.dtype).flatten(1) @ m
    return update.T if transposed else update


def randlora_linear(
    x: Tensor,
    lambda_: Tensor,
    gamma: Tensor,
    basis_a: Tensor,
    basis_b: Tensor,
    scale: float = 1.0,
    *,
    base: Callable[[Tensor], Tensor],
    weight: Callable[[], Tensor] | None = None,
    bias: Tensor | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Output of a frozen linear layer with RandLoRA's update.

    Args:
        x: (..., in).
        lambda_: (r, n).
        gamma: (n, d).
        basis_a: (r, d).
        basis_b: (D, n, r).
        scale: Factor on the update.
        base: The frozen layer as a function of x.
        weight: Gives the frozen layer's dense weight (out, in), for paths that form the summed weight; None
            forbids them.
        bias: The frozen layer's bias, for the same paths.
        dropout: Applied to the update's input only; None means none.

    Returns:
        (..., out), in the output dtype of `base`.
    """
    result = base(x)
    added = added_output(x if dropout is None else dropout(x), lambda_, gamma, basis_a, basis_b, scale)
    return result + added.to(result.dtype)


def added_output(
    x: Tensor, lambda_: Tensor, gamma: Tensor, basis_a: Tensor, basis_b: Tensor, scale: float = 1.0
) -> Tensor:
    """What the update adds to the output for x (..., in): two products, in PEFT's order. The result is (..., out)."""
    m = scaled_a(lambda_, gamma, basis_a, scale)
    b = basis_b.to(m.dtype).flatten(1)
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(m.dtype)
    if x.shape[-1] == m.shape[1]:
        return F.linear(F.linear(x, m), b)
    return F.linear(F.linear(x, b.T), m.T)
