"""The distributions of the frozen random matrices: how the integers of `random_integers` become entries.

Table 3 of the paper, https://arxiv.org/abs/2502.00987, all of variance 1:

    uniform      U(-sqrt 3, sqrt 3), at the midpoints of 2^24 cells
    normal       N(0, 1), by a committed table of its inverse distribution function at the midpoints of 4096 cells
    binary       +-1
    ternary      +-1 with probability 1/s each, else 0; divided by the exact standard deviation sqrt(2/s)
    sparse       ternary with s = 6;  very_sparse: ternary with s = sqrt(d), d the largest smaller side of the targets

Entries are exact functions of the integers, so that they depend neither on the device nor on the version of torch or
numpy. They are stored in bfloat16, signs in int8: at most 2 bytes an entry. The factor that makes the variance of signs
1 is kept apart (`Distribution.unit`), so that signs stay exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from randlora_core.adapters.random_integers import BITS, BLOCK_ELEMENTS, integers, integers_on, row_blocks, stream_key

BASES = ("uniform", "normal", "binary", "ternary", "sparse", "very_sparse")
SPARSE_S = 6.0
MIN_SPARSITY = 2.0

_CELLS = 2**BITS
_UNIFORM_STEP = float(np.float32(math.sqrt(3.0) / _CELLS))
_DEVICE_BLOCK_ELEMENTS = 2**24
_NORMAL_TABLE = Path(__file__).with_name("normal_quantiles.safetensors")


@dataclass(frozen=True)
class Distribution:
    """Turns the generator's integers into the entries of a matrix. Two distributions are equal if their entries are.

    Args:
        name: Name, with the sparsity where there is one.
        values: Maps uint32 integers to the stored entries, float32 or int8.
        tensor_values: The same on an int64 tensor, to the bit.
        dtype: Storage type.
        unit: Factor that makes the variance 1.
    """

    name: str
    values: Callable[[np.ndarray], np.ndarray] = field(compare=False)
    tensor_values: Callable[[Tensor], Tensor] = field(compare=False)
    dtype: torch.dtype
    unit: float = 1.0


def distribution(basis: str, sparsity: float | None = None) -> Distribution:
    """The distribution of a named basis.

    Args:
        basis: A name of `BASES`; "very_sparse" needs `sparsity`, since its s depends on the targets.
        sparsity: s of a ternary distribution, at least 2.
    """
    if basis == "uniform":
        return Distribution(basis, _uniform_values, _uniform_tensor, torch.bfloat16)
    if basis == "normal":
        return Distribution(basis, _normal_values, _normal_tensor, torch.bfloat16)
    s = {"binary": MIN_SPARSITY, "sparse": SPARSE_S}.get(basis, sparsity)
    assert s is not None, basis
    values = (functools.partial(function, s=s) for function in (_ternary_values, _ternary_tensor))
    return Distribution(f"ternary, s={s!r}", *values, torch.int8, unit=math.sqrt(s / 2.0))


def _uniform_values(k: np.ndarray) -> np.ndarray:
    # 2k + 1 - 2^24 is exact in float32, so there is one rounding, that of the product.
    return (2 * k.astype(np.int32) + 1 - _CELLS).astype(np.float32) * np.float32(_UNIFORM_STEP)


def _uniform_tensor(k: Tensor) -> Tensor:
    return (2 * k + 1 - _CELLS).to(torch.float32) * _UNIFORM_STEP


def _normal_values(k: np.ndarray) -> np.ndarray:
    table = normal_quantiles()
    return table[k >> np.uint32(BITS - int(math.log2(len(table))))]


def _normal_tensor(k: Tensor) -> Tensor:
    table = torch.from_numpy(normal_quantiles())
    return table.to(k.device)[k >> (BITS - int(math.log2(len(table))))]


def _ternary_values(k: np.ndarray, s: float) -> np.ndarray:
    threshold = round(_CELLS / s)
    return (k >= _CELLS - threshold).astype(np.int8) - (k < threshold).astype(np.int8)


def _ternary_tensor(k: Tensor, s: float) -> Tensor:
    threshold = round(_CELLS / s)
    return (k >= _CELLS - threshold).to(torch.int8) - (k < threshold).to(torch.int8)


def entries_on(
    device: torch.device | str, seed: int, name: str, shape: tuple[int, ...], entries: Distribution
) -> Tensor:
    """A matrix of the seed on `device`, in its storage type; in blocks, so that its integers never exist at once."""
    device = torch.device(device)
    matrix = torch.empty(shape, dtype=entries.dtype, device=device)
    if device.type == "meta":
        return matrix
    key = stream_key(seed, name)
    for rows in row_blocks(shape, BLOCK_ELEMENTS if device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS):
        if device.type == "cpu":  # numpy is about twice as fast there
            matrix[rows] = torch.from_numpy(entries.values(integers(seed, name, shape, rows)))
        else:
            matrix[rows] = entries.tensor_values(integers_on(device, key, shape, rows)).to(entries.dtype)
    return matrix


@functools.cache
def normal_quantiles() -> np.ndarray:
    """The committed table: float32 (4096,), quantiles of N(0, 1) at (i + 1/2) / 4096, scaled to variance 1."""
    return load_file(_NORMAL_TABLE)["quantiles"]
