"""Computes a linear layer with RandLoRA's update: chooses the path and calls the autograd function.

    y = x (W0 + delta)^T + bias         delta (out, in), letters as in `randlora_core.ops.factors`

The products of each path, and what they keep for the backward pass, are in `randlora_core.ops.randlora_function`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from randlora_core.ops import cost
from randlora_core.ops.cost import PATHS, Problem
from randlora_core.ops.factors import num_groups
from randlora_core.ops.randlora_function import Layout, RandLoRAFunction, Remake
from randlora_core.ops.second_order import trace

_default_path = "auto"


@contextmanager
def force_path(path: str) -> Iterator[None]:
    """Make every RandLoRA layer called inside take one path, for measurements and tests.

    Args:
        path: A name of `randlora_core.ops.cost.PATHS`. Half-precision products never take the summed weight.

    Raises:
        ValueError: If the path is unknown.
    """
    global _default_path
    before, _default_path = _default_path, _known(path)
    try:
        yield
    finally:
        _default_path = before


def _known(path: str) -> str:
    if path not in PATHS:
        raise ValueError(f"unknown path {path!r}; known: {', '.join(PATHS)}")
    return path


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
    remake: Remake = None,
    path: str | None = None,
) -> Tensor:
    """Computes the output of a frozen linear layer with RandLoRA's update.

    Args:
        x: (..., in).
        lambda_: (r, n).
        gamma: (n, d).
        basis_a: (r, d), or blocks (r / g, d) as `randlora_core.ops.blocks` explains them.
        basis_b: (D, n, r), or blocks (D, n, r / g).
        scale: Factor on the update.
        base: The frozen layer as a function of x; called where `weight` is None or there is dropout.
        weight: Gives the frozen layer's dense weight (out, in), for paths that compute the layer and its update
            together; None forbids them.
        bias: The frozen layer's bias, for the same paths.
        dropout: Applied to the update's input only; None means none.
        remake: Two functions that give `basis_a` and `basis_b` again; they are not kept for the backward pass then.
        path: A name of `randlora_core.ops.cost.PATHS`; None stands for that of `force_path`, or "auto".

    Returns:
        (..., out), in the output dtype of `base`.

    Raises:
        ValueError: If the path is unknown.
    """
    vectors = (lambda_, gamma, basis_a, basis_b)
    if weight is not None and dropout is None:
        dense = weight()
        if _matches(x, dense):
            return _apply(x, *vectors, dense, bias, scale, remake, path)
    result = base(x)
    added = _apply(x if dropout is None else dropout(x), *vectors, None, None, scale, remake, path)
    return result + added.to(result.dtype)


def added_output(
    x: Tensor,
    lambda_: Tensor,
    gamma: Tensor,
    basis_a: Tensor,
    basis_b: Tensor,
    scale: float = 1.0,
    *,
    remake: Remake = None,
    path: str | None = None,
) -> Tensor:
    """Computes what the update alone adds to the output for x (..., in): (..., out) in the dtype of the products.

    Arguments as in `randlora_linear`. The products run in autocast's dtype, or in that of x.
    """
    return _apply(x, lambda_, gamma, basis_a, basis_b, None, None, scale, remake, path)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Tells the number format of products with x: autocast's, which leaves float64 alone, or that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if _autocasts(x) else x.dtype


def _autocasts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def _matches(x: Tensor, weight: Tensor) -> bool:
    """Whether x and the weight can be multiplied as they are. If not, the frozen layer itself must be called."""
    return weight.device == x.device and (_autocasts(x) or weight.dtype == x.dtype)


@torch.compiler.assume_constant_result
def _rounds_float32(device_type: str) -> bool:
    """Whether float32 products round their factors (TF32, or bfloat16 on CPU); a compiled graph keeps the answer."""
    backend = torch.backends.mkldnn.matmul if device_type == "cpu" else torch.backends.cuda.matmul
    return backend.fp32_precision not in ("none", "ieee")


def _apply(
    x: Tensor,
    lambda_: Tensor,
    gamma: Tensor,
    basis_a: Tensor,
    basis_b: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: float,
    remake: Remake,
    path: str | None,
) -> Tensor:
    dtype = compute_dtype(x)
    exact = dtype == torch.float64 or (dtype == torch.float32 and not _rounds_float32(x.device.type))
    grad = torch.is_grad_enabled()
    out_features, in_features = len(basis_b) + gamma.shape[1] - x.shape[-1], x.shape[-1]
    groups = num_groups(lambda_, basis_a)
    problem = Problem(
        tokens=x.numel() // max(1, in_features),
        out_features=out_features,
        in_features=in_features,
        inner=lambda_.numel(),
        groups=groups,
        dtype=dtype,
        device_type=x.device.type,
        may_sum=weight is not None and exact,
        input_grad=grad and x.requires_grad,
        vector_grad=grad and (lambda_.requires_grad or gamma.requires_grad),
    )
    paths = cost.choose(problem, _default_path if path is None else _known(path))
    by_activations = problem.vector_grad and cost.ACTIVATION == paths.output == paths.vector_grad
    keeps_x_through_b = by_activations and problem.transposed and problem.inner < in_features
    layout = Layout(paths, dtype, scale, out_features, in_features, groups, remake, keeps_x_through_b)
    x = x.to(dtype)  # cast out here, x is let go by the function's backward pass before its gradient is cast back
    trace_x = trace(x) if keeps_x_through_b else None
    return RandLoRAFunction.apply(x, lambda_, gamma, basis_a, basis_b, weight, bias, trace_x, layout)
