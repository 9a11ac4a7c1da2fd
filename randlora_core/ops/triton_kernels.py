"""Says whether Triton's kernels are used, and forms B M in one that makes the scaled A and unpacks signs of 2 bits.

Legend as in `randlora_core.ops.factors`: M (k, d) is never stored, and neither are unpacked signs. The kernels for
bases in groups are in `randlora_core.ops.triton_blocks`. All are off unless `randlora_core.ops.use_triton(True)` turns
them on. All have been checked for correctness through Triton's interpreter on a CPU (which cannot multiply in bfloat16)
and on a GPU; those for bases in groups have been timed there, the one here has not.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

_BLOCKS = {"BLOCK_ROWS": 64, "BLOCK_COLUMNS": 64, "BLOCK_INNER": 32}

_enabled = False


def use_triton(enabled: bool) -> None:
    """Turns the Triton kernels on or off that compute on CUDA, outside of compiled models; they are off at first.

    There are kernels for two things. One forms the update of dense bases in 32 and 16 bits; it has not been timed on a
    GPU. Three compute the products of activations with bases in groups; they are used for products of the kind on which
    a whole step measured faster than with torch's (`randlora_core.ops.products.by_triton`).

    Raises:
        ValueError: If there is no Triton to turn on.
    """
    global _enabled
    if enabled and importlib.util.find_spec("triton") is None:
        raise ValueError("use_triton(True) needs the package triton, which is not installed")
    _enabled = enabled


def uses_triton(tensor: Tensor) -> bool:
    """Tells whether the kernels are on and could compute with this tensor: on CUDA, not in float64, not compiled."""
    return _enabled and tensor.is_cuda and tensor.dtype != torch.float64 and not torch.compiler.is_compiling()


@functools.cache
def kernel() -> Any:
    """Makes the kernel, here and not at module level, so that Triton is imported only by those who use it."""
    import triton
    import triton.language as tl

    @triton.jit
    def b_times_m_kernel(
        b,
        lambda_,
        gamma,
        a,
        out,
        rows,
        columns,
        inner,
        num_bases,
        scale,
        stride_b,
        stride_a,
        PACKED: tl.constexpr,
        HALF: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
        BLOCK_COLUMNS: tl.constexpr,
        BLOCK_INNER: tl.constexpr,
    ):
        row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        for start in range(0, inner, BLOCK_INNER):
            index = start + tl.arange(0, BLOCK_INNER)
            inside = index < inner
            tile = inside[:, None] & (column < columns)[None, :]
            # Row k*n + j of M belongs to entry (k, j) of lambda, row k of A, and row j of gamma.
            scaled = scale * tl.load(lambda_ + index, mask=inside, other=0.0)
            row_a = tl.load(a + (index // num_bases)[:, None] * stride_a + column[None, :], mask=tile, other=0.0)
            row_g = tl.load(gamma + (index % num_bases)[:, None] * columns + column[None, :], mask=tile, other=0.0)
            m = scaled[:, None] * row_a.to(tl.float32) * row_g
            tile = (row < rows)[:, None] & inside[None, :]
            if PACKED:
                codes = tl.load(b + row[:, None] * stride_b + (index // 4)[None, :], mask=tile, other=1)
                left = (((codes >> (2 * (index % 4))[None, :].to(tl.uint8)) & 3).to(tl.int8) - 1).to(tl.float32)
            else:
                left = tl.load(b + row[:, None] * stride_b + index[None, :], mask=tile, other=0.0).to(tl.float32)
            if HALF:
                total = tl.dot(left.to(tl.bfloat16), m.to(tl.bfloat16), total)
            else:
                total = tl.dot(left, m, total, input_precision="ieee")
        tile = (row < rows)[:, None] & (column < columns)[None, :]
        tl.store(out + row[:, None] * columns + column[None, :], total, mask=tile)

    return b_times_m_kernel


def b_times_m(
    lambda_: Tensor, gamma: Tensor, basis_a: Tensor, basis_b: Tensor, scale: float, *, half: bool, packed: bool = False
) -> Tensor:
    """Computes B M, summed in float32.

    Args:
        lambda_: (r, n), float32.
        gamma: (n, d), float32.
        basis_a: (r, d), any dtype.
        basis_b: (D, n, r), any dtype; packed, (D, at least ceil(n r / 4)) of uint8 as
            `randlora_core.adapters.bases.pack_signs` writes it for rows of (n, r) or more bases.
        scale: Factor on the product.
        half: Multiply in bfloat16, which holds B's stored types exactly, instead of in float32.
        packed: Whether B is packed.

    Returns:
        (D, d), float32.
    """
    b = basis_b if packed else basis_b.flatten(1)
    lambda_, gamma = lambda_.contiguous(), gamma.contiguous()
    rows, columns = b.shape[0], gamma.shape[1]
    out = torch.empty(rows, columns, dtype=torch.float32, device=gamma.device)
    grid = (-(-rows // _BLOCKS["BLOCK_ROWS"]), -(-columns // _BLOCKS["BLOCK_COLUMNS"]))
    kernel()[grid](
        b,
        lambda_,
        gamma,
        basis_a,
        out,
        rows,
        columns,
        lambda_.numel(),
        lambda_.shape[1],
        scale,
        b.stride(0),
        basis_a.stride(0),
        PACKED=packed,
        HALF=half,
        **_BLOCKS,
    )
    return out
