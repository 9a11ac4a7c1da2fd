"""Forms the two factors of RandLoRA's update, their product, and the gradients of the trained vectors.

Legend (D >= d are the layer's larger and smaller side, k = n*r):

    lambda_   (r, n)      trained          basis_a   (r, d)       frozen, any dtype
    gamma     (n, d)      trained          basis_b   (D, n, r)    frozen, any dtype

    M  (k, d) = scale * lambda * A * gamma          rows in the order (rank, basis):    row k*n + j
    Bf (D, k) = B                                   columns in the order (basis, rank): column j*r + k
    delta = Bf M where the input is the smaller side (or both are equal), its transpose otherwise

The two flattening orders differ, as in PEFT: column c of Bf meets row c of M, so random column (j, k) is paired with
the row (k', j') for which j*r + k = k'*n + j'. The columns of B are independent and equally distributed, so that this
is a relabelling of them and the mathematics is equation 4's; adapters trained in PEFT need the same order.

Number formats: M is formed in float32 with the scale in it, and cast once afterwards, so that half precision does not
flush small products to zero. A layer's part of a shared B is a view with a row stride: no path copies it, except to
cast it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_a(lambda_: Tensor, gamma: Tensor, basis_a: Tensor, scale: float = 1.0) -> Tensor:
    """Forms M (k, d) of the module's legend, in the dtype of the trained vectors and differentiable in them."""
    a = basis_a.to(lambda_.dtype)
    m = (scale * lambda_)[:, :, None] * a[:, None, :]
    m = m * gamma if torch.is_grad_enabled() or m.dtype != gamma.dtype else m.mul_(gamma)
    return m.flatten(0, 1)


def flat_b(basis_b: Tensor, dtype: torch.dtype) -> Tensor:
    """Gives Bf (D, k) of the module's legend in `dtype`, as a view where that is B's own dtype."""
    return basis_b.flatten(1).to(dtype)


def delta(
    lambda_: Tensor, gamma: Tensor, basis_a: Tensor, basis_b: Tensor, scale: float = 1.0, *, transposed: bool = False
) -> Tensor:
    """Forms the update of the weight.

    Args:
        lambda_: (r, n).
        gamma: (n, d).
        basis_a: (r, d).
        basis_b: (D, n, r).
        scale: Factor on the update.
        transposed: Whether the output is the layer's smaller side.

    Returns:
        (D, d), or (d, D) if transposed; in the dtype of the trained vectors, and differentiable in them.
    """
    m = scaled_a(lambda_, gamma, basis_a, scale)
    update = flat_b(basis_b, m.dtype) @ m
    return update.T if transposed else update


def product(m: Tensor, basis_b: Tensor, dtype: torch.dtype, *, transposed: bool) -> Tensor:
    """Forms the update (out, in) from M, rounded once to `dtype`.

    In bfloat16 the product itself takes bfloat16 factors (which hold B exactly) and sums in float32. In float16 it
    runs in float32, since the entries of M can lie below float16's range where those of the update do not.
    """
    inside = torch.float32 if dtype == torch.float16 else dtype
    m, b = m.to(inside), flat_b(basis_b, inside)
    update = m.T @ b.T if transposed else b @ m
    return update.to(dtype)


def summed_weight(weight: Tensor, m: Tensor, basis_b: Tensor, *, transposed: bool) -> Tensor:
    """Forms W0 + update, (out, in), in the weight's dtype, with no tensor of that size beside the result."""
    m, b = m.to(weight.dtype), flat_b(basis_b, weight.dtype)
    return torch.addmm(weight, m.T, b.T) if transposed else torch.addmm(weight, b, m)


def vector_gradients(
    grad_m: Tensor, lambda_: Tensor, gamma: Tensor, basis_a: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of lambda (r, n) and gamma (n, d) from that of M (k, d), in float32 at least.

    With P = grad_M * A, both are products of P over one axis: P gamma over d, and lambda P over r. They are batched
    over the n bases, which reads P twice; it is stored once, as (n, r, d), since batches of another layout are copied.
    """
    dtype = torch.promote_types(lambda_.dtype, torch.float32)
    lambda_, gamma = lambda_.to(dtype), gamma.to(dtype)
    by_basis = grad_m.view(*lambda_.shape, -1).transpose(0, 1)
    p = torch.mul(by_basis, scale * basis_a.to(dtype), out=gamma.new_empty(by_basis.shape))
    grad_lambda = torch.bmm(p, gamma[:, :, None])[:, :, 0].T
    grad_gamma = torch.bmm(lambda_.T.contiguous()[:, None, :], p)[:, 0]
    return grad_lambda, grad_gamma
