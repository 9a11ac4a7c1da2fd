"""Forms the scaled A of RandLoRA's update, the update itself, and the gradients of the trained vectors.

Legend (D >= d are the layer's larger and smaller side, k = n*r):

    lambda_   (r, n)      trained          basis_a   (r, d)       frozen, any dtype
    gamma     (n, d)      trained          basis_b   (D, n, r)    frozen, any dtype

    M  (k, d) = scale * lambda * A * gamma          rows in the order (rank, basis):    row k*n + j
    Bf (D, k) = B                                   columns in the order (basis, rank): column j*r + k
    delta = Bf M where the input is the smaller side (or both are equal), its transpose otherwise

The two flattening orders differ, as in PEFT: column c of Bf meets row c of M, so random column (j, k) is paired with
the row (k', j') for which j*r + k = k'*n + j'. The columns of B are independent and equally distributed, so that this
is a relabelling of them and the mathematics is equation 4's; adapters trained in PEFT need the same order.

Bases with a block structure (`randlora_core.ops.blocks`) come as their blocks, A as (r / g, d) and B as (D, n, r / g),
which is how the functions here know the number of groups g.

Number formats: M is formed in float32 with the scale in it, and cast once afterwards, so that half precision does not
flush small products to zero. A layer's part of a shared B is a view with a row stride: no path copies it, except to
cast it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from randlora_core.ops.blocks import dense_a, scaled_a_blocks, vector_gradients_in_blocks
from randlora_core.ops.products import b_factor, update_of


def num_groups(lambda_: Tensor, basis_a: Tensor) -> int:
    """Tells into how many groups the bases are divided; 1 for dense ones."""
    return lambda_.shape[0] // basis_a.shape[0]


def scaled_a(lambda_: Tensor, gamma: Tensor, basis_a: Tensor, scale: float = 1.0) -> Tensor:
    """Forms M (k, d) of the module's legend, in the dtype of the trained vectors and differentiable in them."""
    a = _dense_a(lambda_, basis_a).to(lambda_.dtype)
    m = (scale * lambda_)[:, :, None] * a[:, None, :]
    m = m * gamma if torch.is_grad_enabled() or m.dtype != gamma.dtype else m.mul_(gamma)
    return m.flatten(0, 1)


def scaled_a_factor(lambda_: Tensor, gamma: Tensor, basis_a: Tensor, scale: float) -> Tensor:
    """Forms M as a factor of `randlora_core.ops.products`: in blocks where the bases are."""
    form = scaled_a if num_groups(lambda_, basis_a) == 1 else scaled_a_blocks
    return form(lambda_, gamma, basis_a, scale)


def _dense_a(lambda_: Tensor, basis_a: Tensor) -> Tensor:
    groups = num_groups(lambda_, basis_a)
    return basis_a if groups == 1 else dense_a(basis_a, groups)


def delta(
    lambda_: Tensor, gamma: Tensor, basis_a: Tensor, basis_b: Tensor, scale: float = 1.0, *, transposed: bool = False
) -> Tensor:
    """Forms the update of the weight.

    Args:
        lambda_: (r, n).
        gamma: (n, d).
        basis_a: (r, d), or its blocks (r / g, d).
        basis_b: (D, n, r), or its blocks (D, n, r / g).
        scale: Factor on the update.
        transposed: Whether the output is the layer's smaller side.

    Returns:
        (D, d), or (d, D) if transposed; in the dtype of the trained vectors, and differentiable in them.
    """
    m = scaled_a(lambda_, gamma, basis_a, scale)
    b = b_factor(basis_b, m.dtype, num_groups(lambda_, basis_a))
    update = update_of(m, b, len(basis_b), transposed=False)
    return update.T if transposed else update


def vector_gradients(
    grad_m: Tensor, lambda_: Tensor, gamma: Tensor, basis_a: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of lambda (r, n) and gamma (n, d) from that of M, in float32 at least.

    With P = grad_M * A, both are products of P over one axis: P gamma over d, and lambda P over r. They are batched
    over the n bases, which reads P twice; it is stored once, as (n, r, d), since batches of another layout are copied.

    Args:
        grad_m: (k, d), or in blocks (g, r / g, n, ceil(d / g)).
        lambda_: (r, n).
        gamma: (n, d).
        basis_a: As in `delta`.
        scale: As in `delta`.
    """
    dtype = torch.promote_types(lambda_.dtype, torch.float32)
    lambda_, gamma = lambda_.to(dtype), gamma.to(dtype)
    if grad_m.dim() == 4:
        return vector_gradients_in_blocks(grad_m.to(dtype), lambda_, gamma, basis_a, scale)
    by_basis = grad_m.view(*lambda_.shape, -1).transpose(0, 1)
    a = _dense_a(lambda_, basis_a).to(dtype)
    p = torch.mul(by_basis, scale * a, out=gamma.new_empty(by_basis.shape))
    grad_lambda = torch.bmm(p, gamma[:, :, None])[:, :, 0].T
    grad_gamma = torch.bmm(lambda_.T.contiguous()[:, None, :], p)[:, 0]
    return grad_lambda, grad_gamma
