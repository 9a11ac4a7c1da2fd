"""Rescales a layer's output as DoRA does, in one function that keeps one tensor for the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from randlora_core.ops.second_order import refuse_second_derivatives, trace


def rescaled(frozen: Tensor, added: Tensor | None, bias: Tensor | None, ratio: Tensor) -> Tensor:
    """Computes the output of the weight diag(ratio) (W0 + dW), which is ratio * (frozen - bias + added) + bias.

    It is computed in float32 at least and rounded once, to `frozen`'s dtype. For the backward pass frozen + added is
    kept, in that dtype, where autograd would keep both and the difference to the bias in float32. Second derivatives
    raise.

    Args:
        frozen: The frozen layer's output x W0^T + bias, (..., out).
        added: The update's output x dW^T, (..., out); None where it is part of `frozen`.
        bias: (out,), or None where the layer has none.
        ratio: Factor of every output, (out,), float32 or float64. Where it is 1 and `added` 0, the output is `frozen`
            to the bit.

    Returns:
        (..., out) in `frozen`'s dtype.
    """
    traces = (None, None) if added is None else (trace(frozen), trace(added))
    return _Rescaled.apply(frozen, added, bias, ratio, *traces)


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        frozen: Tensor,
        added: Tensor | None,
        bias: Tensor | None,
        ratio: Tensor,
        trace_frozen: Tensor | None,
        trace_added: Tensor | None,
    ) -> Tensor:
        total = frozen if added is None else frozen + added.to(torch.promote_types(frozen.dtype, ratio.dtype))
        ctx.save_for_backward(total.to(frozen.dtype), bias, ratio)
        ctx.traces = (trace_frozen, trace_added)
        ctx.added_dtype = None if added is None else added.dtype
        scaled = total * ratio if bias is None else torch.addcmul((1 - ratio) * bias, total, ratio)
        return scaled.to(frozen.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        total, bias, ratio = ctx.saved_tensors
        of_frozen, of_added, of_bias, of_ratio, *_ = ctx.needs_input_grad
        grad_frozen = grad_added = grad_bias = grad_ratio = None
        with torch.no_grad():
            if of_frozen or of_added:
                grad_frozen = (grad * ratio).to(grad.dtype)
                grad_added = grad_frozen.to(ctx.added_dtype) if of_added else None
            if of_ratio:
                grad_ratio = _over_tokens(grad.to(ratio.dtype) * total, ratio.dtype)
            if bias is not None and (of_ratio or of_bias):
                summed = _over_tokens(grad, ratio.dtype)
                grad_ratio = grad_ratio - bias * summed if of_ratio else None
                grad_bias = ((1 - ratio) * summed).to(bias.dtype) if of_bias else None
        gradients = (grad_frozen, grad_added, grad_bias, grad_ratio)
        return *refuse_second_derivatives(gradients, (grad, total, bias, ratio, *ctx.traces)), None, None


def _over_tokens(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (..., out) over all but the last axis, accumulating in `dtype`."""
    return values.reshape(-1, values.shape[-1]).sum(0, dtype=dtype)
