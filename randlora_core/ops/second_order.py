"""Refuses gradients of gradients through the autograd functions of this package, which have first derivatives only.

`torch.autograd.function.once_differentiable` does not suffice. It cuts the gradient off from the tensors that it
depends on, so that `torch.autograd.grad(..., allow_unused=True)` finds no way to them and leaves their part out without
an error. And it marks nothing at all where the gradient of the output is a constant, as that of a sum is. Here the
gradients stay connected to everything they depend on, through a node that raises when it is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MESSAGE = (
    "this gradient cannot be differentiated again: adapted layers of RandLoRA and DoRA, and PEFT's RandLoRA under "
    "accelerate_peft, compute their first derivatives only. Detach the gradient, make it without create_graph=True, or "
    "merge the adapter"
)


def refuse_second_derivatives(
    gradients: Sequence[Tensor | None], depends_on: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of a backward pass such that differentiating them raises a RuntimeError.

    Without `create_graph=True` they are returned as they are. In a compiled model AOTAutograd refuses second
    derivatives by itself; torch.compile's debugging backend "eager" has no AOTAutograd and does not refuse them.

    Args:
        gradients: What the backward pass computed under `torch.no_grad()`.
        depends_on: The tensors that it was computed from, with their part of the graph: the output's gradient, inputs
            as `ctx.saved_tensors` gives them, and `trace` of inputs that are not saved.
    """
    sources = [tensor for tensor in depends_on if tensor is not None and tensor.requires_grad]
    if not sources or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return tuple(gradients)
    made = [gradient for gradient in gradients if gradient is not None]
    marked = iter(_Refusal.apply(len(made), *made, *sources))
    return tuple(None if gradient is None else next(marked) for gradient in gradients)


def trace(x: Tensor) -> Tensor | None:
    """Makes an empty tensor that is connected to x in the graph and keeps none of its values; None without a graph.

    A function that does not save an input keeps this on its `ctx` in the input's place, to know on what its gradients
    depend.
    """
    if not x.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return x.narrow(-1, 0, 0).clone()


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> None:
        raise RuntimeError(MESSAGE)
