"""The autograd function behind every path of a linear layer with RandLoRA's update.

    y = x (W0 + delta)^T + bias         delta (out, in), letters as in `randlora_core.ops.factors`

    activation      y = x W0^T + (x M^T) B^T, or x W0^T + (x B) M where out < in
    summed          y = x (W0 + delta)^T, the sum formed once
    two products    y = x W0^T + x delta^T, accumulated before the one rounding

All save x, lambda and gamma for the backward pass and rebuild the rest. The gradient of the vectors comes from
grad_M, (dY B)^T x (or (x B)^T dY where out < in) by activations, and B^T (dY^T x) by the weight. Where x B is a
by-product of the output and smaller than x, it is saved in the place of x.

Number formats: W0 + delta rounded to 16 bits can lose a small delta entirely, so the sum is formed only where the
product runs in float32 or float64. Otherwise there are two products, the update's first: x W0^T is accumulated onto
it in float32 and rounded with it, so that a delta far below the rounding of W0 or of y still shifts y in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from randlora_core.ops.blocks import with_whole_groups
from randlora_core.ops.cost import ACTIVATION, HALF, SUMMED, StepPaths
from randlora_core.ops.factors import scaled_a, scaled_a_factor, vector_gradients
from randlora_core.ops.products import (
    b_factor,
    gradient_of_scaled_a,
    into,
    out_of,
    plus_update,
    through_update,
    update_of,
)
from randlora_core.ops.second_order import refuse_second_derivatives
from randlora_core.ops.triton_kernels import b_times_m, uses_triton

Remake = tuple[Callable[[], Tensor], Callable[[], Tensor]] | None
"""Functions that give A and B again in the backward pass, where they are not kept for it."""


@dataclass(frozen=True)
class Layout:
    """Holds the values that `RandLoRAFunction` needs beside tensors.

    Args:
        paths: The path of each part.
        dtype: Number format of the products over tokens.
        scale: Factor on the update.
        out_features: Size of the output.
        in_features: Size of the input.
        groups: Number of groups that the bases are divided into; 1 for dense ones.
        remake: As in `randlora_core.ops.randlora_linear`.
        keeps_x_through_b: Whether x B is saved in the place of x.
    """

    paths: StepPaths
    dtype: torch.dtype
    scale: float
    out_features: int
    in_features: int
    groups: int
    remake: Remake
    keeps_x_through_b: bool

    @property
    def larger(self) -> int:
        """The layer's larger side D."""
        return max(self.out_features, self.in_features)

    @property
    def transposed(self) -> bool:
        """Whether the output is the layer's smaller side."""
        return self.out_features < self.in_features


class RandLoRAFunction(torch.autograd.Function):
    """Computes the products of the module's legend, for x in the dtype of the products."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        lambda_: Tensor,
        gamma: Tensor,
        basis_a: Tensor,
        basis_b: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        trace_x: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        """Computes (..., out) in the dtype of the products, without the frozen layer's part if `weight` is None."""
        ctx.layout, ctx.trace_x = layout, trace_x
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.autocast(x.device.type, enabled=False):
            vectors = (lambda_, gamma, basis_a, basis_b)
            y, x_through_b = _tokens_times_weight(_rows(x), vectors, weight, bias, layout)
        kept = (None, None)
        if any(ctx.needs_input_grad[1:3]):
            kept = (None, x_through_b) if layout.keeps_x_through_b else (x, None)
        bases = (basis_a, basis_b) if layout.remake is None else (None, None)
        ctx.save_for_backward(*kept, lambda_, gamma, *bases, weight)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the gradients of x, lambda, gamma and the bias, which cannot be differentiated again."""
        x, through_b, lambda_, gamma, basis_a, basis_b, weight = ctx.saved_tensors
        depends_on = (grad_output, x, lambda_, gamma, ctx.trace_x)
        layout = ctx.layout
        if layout.remake is not None:
            basis_a, basis_b = (make() for make in layout.remake)
        needs_x, *needs_vectors = ctx.needs_input_grad[:3]
        grad_x = grad_lambda = grad_gamma = grad_bias = None
        with torch.no_grad(), torch.autocast(grad_output.device.type, enabled=False):
            rows = grad_output.to(layout.dtype).reshape(-1, grad_output.shape[-1])
            basis_b = basis_b.flatten(1)
            if needs_x or (any(needs_vectors) and through_b is None):
                basis_b = with_whole_groups(basis_b, layout.groups)  # filled up and cast once for both parts
                if layout.dtype != torch.float16:  # whose products take B as it is stored
                    basis_b = basis_b.to(layout.dtype)
            if needs_x and layout.paths.input_grad == ACTIVATION and not layout.transposed:
                through_b = into(rows, b_factor(basis_b, layout.dtype, layout.groups))
            if any(needs_vectors):
                grad_m = _gradient_of_m(x, rows, (lambda_, gamma, basis_a, basis_b), through_b, layout)
                grad_lambda, grad_gamma = vector_gradients(grad_m, lambda_, gamma, basis_a, layout.scale)
                grad_lambda = grad_lambda.to(lambda_.dtype) if needs_vectors[0] else None
                grad_gamma = grad_gamma.to(gamma.dtype) if needs_vectors[1] else None
                grad_m = None
            if needs_x:
                grad_through_b = None if layout.transposed else through_b
                through_b, vectors = None, (lambda_, gamma, basis_a, basis_b)
                grad_x = _tokens_times_transpose(rows, grad_through_b, vectors, weight, layout)
                if layout.paths.input_grad != SUMMED:
                    # What only the update needed is let go before a copy of W0 is made.
                    grad_through_b = basis_b = vectors = None
                    grad_x = _add_frozen(grad_x, rows, weight)
                grad_x = grad_x.view(*grad_output.shape[:-1], layout.in_features)
            if ctx.needs_input_grad[6]:
                grad_bias = rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32)).to(ctx.bias_dtype)
        gradients = (grad_x, grad_lambda, grad_gamma, None, None, None, grad_bias, None, None)
        return refuse_second_derivatives(gradients, depends_on)


Vectors = tuple[Tensor, Tensor, Tensor, Tensor]
"""lambda, gamma, A, and B, which may be flat and have rows of zeros at its end."""


def _scaled_a(vectors: Vectors, layout: Layout, form: Callable[..., Tensor] = scaled_a) -> Tensor:
    """Forms M in float32 at least."""
    lambda_, gamma, basis_a, _ = vectors
    dtype = torch.promote_types(lambda_.dtype, torch.float32)
    return form(lambda_.to(dtype), gamma.to(dtype), basis_a, layout.scale)


def _m_factor(vectors: Vectors, layout: Layout) -> Tensor:
    """Gives M transposed as a factor of products by activations."""
    return _scaled_a(vectors, layout, scaled_a_factor).to(layout.dtype)


def _update(vectors: Vectors, layout: Layout) -> Tensor:
    """Forms the update (out, in), rounded once to the dtype of the products.

    In bfloat16 the product itself takes bfloat16 factors (which hold B exactly) and sums in float32. In float16 it
    runs in float32, since the entries of M can lie below float16's range where those of the update do not.
    """
    lambda_, gamma, basis_a, basis_b = vectors
    if _forms_by_triton(lambda_, layout):
        half = layout.dtype == torch.bfloat16
        update = b_times_m(lambda_.float(), gamma.float(), basis_a, basis_b, layout.scale, half=half).to(layout.dtype)
        return update.T if layout.transposed else update
    inside = torch.float32 if layout.dtype == torch.float16 else layout.dtype
    m, b = _scaled_a(vectors, layout).to(inside), b_factor(basis_b, inside, layout.groups)
    return update_of(m, b, layout.larger, transposed=layout.transposed).to(layout.dtype)


def _summed_weight(weight: Tensor, vectors: Vectors, layout: Layout) -> Tensor:
    """Forms W0 + update, (out, in), in the weight's dtype."""
    if _forms_by_triton(weight, layout):
        return weight + _update(vectors, layout)
    m, b = _scaled_a(vectors, layout).to(weight.dtype), b_factor(vectors[3], weight.dtype, layout.groups)
    return plus_update(weight, m, b, transposed=layout.transposed)


def _forms_by_triton(tensor: Tensor, layout: Layout) -> bool:
    return layout.groups == 1 and layout.dtype != torch.float64 and uses_triton(tensor)


def _tokens_times_weight(
    x: Tensor, vectors: Vectors, weight: Tensor | None, bias: Tensor | None, layout: Layout
) -> tuple[Tensor, Tensor | None]:
    """Computes the output (T, out) for x (T, in), and gives x B (T, k) where it is a by-product."""
    dtype, way = layout.dtype, layout.paths.output
    if bias is not None:
        bias = bias.to(dtype)
    if way == SUMMED:
        return F.linear(x, _summed_weight(weight, vectors, layout), bias), None
    frozen = None if weight is None else weight.T
    if way == ACTIVATION:
        m, b = _m_factor(vectors, layout), b_factor(vectors[3], dtype, layout.groups)
        first, second = (b, m) if layout.transposed else (m, b)
        inner = into(x, first)
        y = out_of(inner, second, layout.out_features, None if dtype in HALF else bias)
        del m, b, first, second
        return _add_frozen(y, x, frozen, bias), inner if layout.transposed else None
    return _add_frozen(_product_plus_bias(x, _update(vectors, layout).T, bias), x, frozen, bias), None


def _tokens_times_transpose(
    grad: Tensor, through_b: Tensor | None, vectors: Vectors, weight: Tensor | None, layout: Layout
) -> Tensor:
    """Computes the update's part of the input's gradient, (T, in), for `grad` (T, out).

    `through_b` is grad B (T, k) where that is there already. Where W0 + update is summed, the gradient is whole.
    """
    way = layout.paths.input_grad
    if way == SUMMED:
        return grad @ _summed_weight(weight, vectors, layout)
    if way != ACTIVATION:
        return grad @ _update(vectors, layout)
    m = _m_factor(vectors, layout)
    if layout.transposed:
        return out_of(into(grad, m), b_factor(vectors[3], layout.dtype, layout.groups), layout.in_features)
    return out_of(through_b, m, layout.in_features)


def _gradient_of_m(
    x: Tensor | None, grad: Tensor, vectors: Vectors, through_b: Tensor | None, layout: Layout
) -> Tensor:
    """Computes the gradient of M for x (T, in) and the output's gradient `grad` (T, out): (k, d), or in blocks.

    By activations it is `through_b`, the one of the two on the larger side times B, times the other one; x is not
    looked at where it is the one behind a `through_b`.
    """
    wide, narrow = (x, grad) if layout.transposed else (grad, x)  # (T, D), (T, d)
    gamma, basis_b = vectors[1], vectors[3]
    half = layout.dtype == torch.float16  # whose range a gradient of M, sqrt(D) larger than the weight's, may exceed
    if layout.paths.vector_grad != ACTIVATION:
        dtype = torch.float32 if half else layout.dtype
        return through_update((_rows(wide).T @ _rows(narrow)).to(dtype), b_factor(basis_b, dtype, layout.groups))
    if through_b is None:
        through_b = into(_rows(wide), b_factor(basis_b, layout.dtype, layout.groups))
    if not half:
        return gradient_of_scaled_a(through_b, _rows(narrow), layout.groups, len(gamma))
    factor = 2.0 ** -round(math.log2(layout.larger) / 2)
    return gradient_of_scaled_a(factor * through_b, _rows(narrow), layout.groups, len(gamma)).float() / factor


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


# A layer's output is the update's product, in its first step, and the frozen layer's, accumulated onto it: rounded by
# itself the update keeps its own precision. The other way round, small updates of large outputs would vanish. For the
# same reason a bias joins a 16-bit output last.


def _product_plus_bias(z: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Computes z @ matrix, and adds the bias where that is exact enough."""
    return z @ matrix if bias is None or z.dtype in HALF else torch.addmm(bias, z, matrix)


def _add_frozen(result: Tensor, x: Tensor, matrix: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Adds x @ matrix to `result`, in place, and the bias where `_product_plus_bias` left it out."""
    if matrix is not None:
        result.addmm_(x, matrix.to(x.dtype))
    return result.add_(bias) if bias is not None and x.dtype in HALF else result
