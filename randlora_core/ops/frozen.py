"""A product with a frozen matrix that is stored in a narrower type than the product takes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def frozen_linear(x: Tensor, matrix: Tensor) -> Tensor:
    """The product x matrix^T for x (..., in) and a frozen matrix (out, in) of any dtype: (..., out).

    The product runs in autocast's dtype, or in that of x. The matrix is cast for each product and the cast copy let go,
    where autograd would keep it until the backward pass.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return _FrozenLinear.apply(x.to(dtype), matrix)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return torch.nn.functional.linear(x, matrix.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, None]:
        (matrix,) = ctx.saved_tensors
        grad = grad_output @ matrix.to(grad_output.dtype) if ctx.needs_input_grad[0] else None
        return grad, None
