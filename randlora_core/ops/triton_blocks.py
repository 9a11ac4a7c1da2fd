"""Multiplies by factors in blocks with Triton: the products of `randlora_core.ops.products` without sorted copies.

torch's batched products need the columns of a group one after another, so that x (T, columns) is copied before a
product and the result after it. The kernels here read x and write the result in place, where neighbouring columns
belong to neighbouring groups. One program takes up to 8 groups at a time, and so loads and stores runs of neighbouring
columns; there is a warp for each group, which is how Triton divides a product of 16 bits with three axes.

A tile has three axes, the first of which is the group. In the kernels `row` counts the rows of one group of a factor
(the axes s and m together, see `randlora_core.ops.blocks`) and `w` the columns of one group. Sums are in float32, and
float32 factors are not rounded to TF32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_GROUPS = 8
"""The groups of one program. Fewer are taken where the bases have fewer: the next power of 2."""

TILES = {
    "into": {False: (32, 32, 16), True: (32, 32, 32)},
    "out_of": {False: (32, 16, 32), True: (32, 32, 32)},
    "gradient": {False: (16, 32, 32), True: (32, 32, 32)},
}
"""Kernel -> whether it is of 16 bits -> the tokens, rows and columns w of each group that a program takes at a time."""

MOST_PARTS = 8
"""How many sums over parts of the tokens the gradient of the scaled A is made of, at most."""


@triton.jit
def _this_program(first, second):
    """Counts this program's block along three axes; blocks of the first one run side by side and share the caches."""
    program = tl.program_id(0)
    return program % first, program // first % second, program // (first * second)


@triton.jit
def _in_x(group, w, token, groups, columns, tokens, stride):
    """Locates entries of x (T, columns), whose rows are `stride` apart, and tells which of them exist."""
    column = w * groups + group
    return token * stride + column, (group < groups) & (column < columns) & (token < tokens)


@triton.jit
def _in_inner(group, row, token, groups, rows, tokens, run):
    """Locates entries of inner (k, T), where runs of rows follow each other group by group."""
    component = (row // run * groups + group) * run + row % run
    return component.to(tl.int64) * tokens + token, (group < groups) & (row < rows) & (token < tokens)


@triton.jit
def _in_factor(group, row, w, groups, rows, width, stride_group, stride_row, stride_w):
    """Locates entries of a factor (g, rows, width)."""
    exists = (group < groups) & (row < rows) & (w < width)
    return group * stride_group + row * stride_row + w * stride_w, exists


@triton.jit
def into_kernel(
    x,
    factor,
    inner,
    tokens,
    columns,
    groups,
    rows,
    run,
    width,
    stride_x,
    stride_group,
    stride_row,
    stride_w,
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes inner (k, T) for one block of groups, rows and tokens."""
    block_group, block_row, block_token = _this_program(tl.cdiv(groups, GROUPS), tl.cdiv(rows, ROWS))
    group = block_group * GROUPS + tl.arange(0, GROUPS)[:, None, None]
    row = block_row * ROWS + tl.arange(0, ROWS)[None, :, None]
    token = tl.arange(0, TOKENS)[None, None, :]
    first = block_token * TOKENS
    x += first.to(tl.int64) * stride_x
    total = tl.zeros((GROUPS, ROWS, TOKENS), dtype=tl.float32)
    for start in range(0, width, WIDTH):
        w = start + tl.arange(0, WIDTH)
        place, exists = _in_factor(
            group, row, w[None, None, :], groups, rows, width, stride_group, stride_row, stride_w
        )
        left = tl.load(factor + place, mask=exists, other=0.0)
        place, exists = _in_x(group, w[None, :, None], token, groups, columns, tokens - first, stride_x)
        right = tl.load(x + place, mask=exists, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    place, exists = _in_inner(group, row, first + token, groups, rows, tokens, run)
    tl.store(inner + place, total, mask=exists)


@triton.jit
def out_of_kernel(
    inner,
    factor,
    bias,
    x,
    tokens,
    columns,
    groups,
    rows,
    run,
    width,
    stride_group,
    stride_row,
    stride_w,
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes x (T, columns) for one block of groups, columns and tokens; `bias` (columns,) may be None."""
    block_group, block_w, block_token = _this_program(tl.cdiv(groups, GROUPS), tl.cdiv(width, WIDTH))
    group = block_group * GROUPS + tl.arange(0, GROUPS)[:, None, None]
    w = block_w * WIDTH + tl.arange(0, WIDTH)[None, :, None]
    token = tl.arange(0, TOKENS)[None, None, :]
    first = block_token * TOKENS
    total = tl.zeros((GROUPS, WIDTH, TOKENS), dtype=tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        place, exists = _in_factor(
            group, row[None, None, :], w, groups, rows, width, stride_group, stride_row, stride_w
        )
        left = tl.load(factor + place, mask=exists, other=0.0)
        place, exists = _in_inner(group, row[None, :, None], first + token, groups, rows, tokens, run)
        right = tl.load(inner + place, mask=exists, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    if bias is not None:
        column = w * groups + group
        total += tl.load(bias + column, mask=(group < groups) & (column < columns), other=0.0).to(tl.float32)
    place, exists = _in_x(group, w, token, groups, columns, tokens - first, columns)
    tl.store(x + first.to(tl.int64) * columns + place, total, mask=exists)


@triton.jit
def gradient_kernel(
    inner,
    x,
    parts,
    tokens,
    columns,
    groups,
    rows,
    run,
    width,
    stride_x,
    tokens_of_a_part,
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes parts (number of parts, g, rows, width), float32, for one block of groups, rows, and w of one part."""
    row_blocks = tl.cdiv(rows, ROWS)
    block_group, block, part = _this_program(tl.cdiv(groups, GROUPS), row_blocks * tl.cdiv(width, WIDTH))
    group = block_group * GROUPS + tl.arange(0, GROUPS)[:, None, None]
    row = block % row_blocks * ROWS + tl.arange(0, ROWS)[None, None, :]
    w = block // row_blocks * WIDTH + tl.arange(0, WIDTH)[None, :, None]
    token = tl.arange(0, TOKENS)
    first = part * tokens_of_a_part
    x += first.to(tl.int64) * stride_x
    total = tl.zeros((GROUPS, WIDTH, ROWS), dtype=tl.float32)
    for start in range(first, tl.minimum(first + tokens_of_a_part, tokens), TOKENS):
        place, exists = _in_x(group, w, token[None, None, :], groups, columns, tokens - start, stride_x)
        left = tl.load(x + place, mask=exists, other=0.0)
        place, exists = _in_inner(group, row, start + token[None, :, None], groups, rows, tokens, run)
        right = tl.load(inner + place, mask=exists, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
        x += TOKENS * stride_x
    place, exists = _in_factor(group, row, w, groups, rows, width, rows * width, width, 1)
    tl.store(parts + part.to(tl.int64) * groups * rows * width + place, total, mask=exists)


def into(x: Tensor, factor: Tensor) -> Tensor:
    """Computes x times the factor transposed: inner (k, T), in the dtype of x.

    Args:
        x: (T, columns); float32, bfloat16 or float16.
        factor: (g, s, m, w), in blocks as `randlora_core.ops.blocks` explains them, in the dtype of x.
    """
    x, factor, run = _with_dense_rows(x), factor.flatten(1, 2), factor.shape[2]
    (tokens, columns), (groups, rows, width) = x.shape, factor.shape
    inner = x.new_empty(groups * rows, tokens)
    sizes = (tokens, columns, groups, rows, run, width)
    tiles = _tiles("into", groups, x.dtype)
    count = _num_programs(tiles, GROUPS=groups, ROWS=rows, TOKENS=tokens)
    with torch.cuda.device_of(x):
        into_kernel[(count,)](x, factor, inner, *sizes, x.stride(0), *factor.stride(), **tiles)
    return inner


def out_of(inner: Tensor, factor: Tensor, columns: int, bias: Tensor | None = None) -> Tensor:
    """Computes inner (k, T) times the factor, plus a bias (columns,): (T, columns), in the dtype of inner."""
    inner, factor, run = inner.contiguous(), factor.flatten(1, 2), factor.shape[2]
    tokens, (groups, rows, width) = inner.shape[1], factor.shape
    x = inner.new_empty(tokens, columns)
    sizes = (tokens, columns, groups, rows, run, width)
    tiles = _tiles("out_of", groups, x.dtype)
    count = _num_programs(tiles, GROUPS=groups, WIDTH=width, TOKENS=tokens)
    with torch.cuda.device_of(x):
        out_of_kernel[(count,)](inner, factor, bias, x, *sizes, *factor.stride(), **tiles)
    return x


def gradient_of_scaled_a(inner: Tensor, x: Tensor, groups: int, num_bases: int) -> Tensor:
    """Computes the gradient of the scaled A in blocks (g, t, n, w), float32, from inner (k, T) and x (T, d)."""
    inner, x = inner.contiguous(), _with_dense_rows(x)
    tokens, columns = x.shape
    rows, width = len(inner) // groups, triton.cdiv(columns, groups)
    tiles = _tiles("gradient", groups, x.dtype)
    blocks_of_tokens = triton.cdiv(triton.cdiv(tokens, tiles["TOKENS"]), MOST_PARTS)  # of one part
    tokens_of_a_part = max(1, blocks_of_tokens) * tiles["TOKENS"]
    num_parts = max(1, triton.cdiv(tokens, tokens_of_a_part))
    parts = torch.empty(num_parts, groups, rows, width, dtype=torch.float32, device=x.device)
    sizes = (tokens, columns, groups, rows, num_bases, width)
    count = _num_programs(tiles, GROUPS=groups, ROWS=rows, WIDTH=width)
    with torch.cuda.device_of(x):
        gradient_kernel[(count * num_parts,)](inner, x, parts, *sizes, x.stride(0), tokens_of_a_part, **tiles)
    return parts.sum(0).unflatten(1, (-1, num_bases))


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _num_programs(tiles: dict[str, int], **sizes: int) -> int:
    """Counts the tiles that cover three axes, told by the names of their tiles."""
    return math.prod(triton.cdiv(size, tiles[name]) for name, size in sizes.items())


def _tiles(kernel: str, groups: int, dtype: torch.dtype) -> dict[str, int]:
    together = min(MOST_GROUPS, triton.next_power_of_2(groups))
    tokens, rows, width = TILES[kernel][dtype.itemsize == 2]
    return {"GROUPS": together, "TOKENS": tokens, "ROWS": rows, "WIDTH": width, "num_warps": together}
