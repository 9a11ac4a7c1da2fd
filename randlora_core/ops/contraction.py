"""Contracts frozen matrices with trained coefficients, for NoLA and RandLoRA-a."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def contract(
    equation: str, matrices: Tensor, coefficients: Tensor, remake: Callable[[], Tensor] | None = None
) -> Tensor:
    """Computes the einsum of frozen matrices with trained coefficients, in the latter's dtype, outside of autocast.

    For the backward pass it keeps the matrices as they are stored, or nothing. Autograd on the plain expression would
    keep a copy of them in the coefficients' dtype for every layer, and undo what sharing them saves.

    Args:
        equation: As of `torch.einsum`, matrices first.
        matrices: Frozen, any dtype.
        coefficients: Trained.
        remake: Gives the matrices again in the backward pass, for which they are not kept then.
    """
    with torch.autocast(coefficients.device.type, enabled=False):
        return _Contraction.apply(equation, matrices, coefficients, remake)


class _Contraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, equation: str, matrices: Tensor, coefficients: Tensor, remake: Callable | None) -> Tensor:
        ctx.equation, ctx.remake = equation, remake
        ctx.save_for_backward(matrices if remake is None else None)
        return torch.einsum(equation, matrices.to(coefficients.dtype), coefficients)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, None, Tensor, None]:
        matrices = ctx.saved_tensors[0] if ctx.remake is None else ctx.remake()
        inputs, _, output = ctx.equation.partition("->")
        of_matrices, of_coefficients = inputs.split(",")
        equation = f"{of_matrices},{output}->{of_coefficients}"
        return None, None, torch.einsum(equation, matrices.to(grad.dtype), grad), None
