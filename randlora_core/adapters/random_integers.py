"""Random integers for the entries of a matrix, each a function of (seed, matrix name, index) alone.

The generator is nested SplitMix64 (`randlora_core.splitmix`). The stream of a matrix has a key made of seed and name,
and the outputs of a stream are the states of the streams along the next axis:

    key(i, j, ...) = output j of the stream with state key(i, ...)

So an entry depends neither on the size of the matrix nor on other matrices, and a slice of a large matrix is the small
matrix. The top 24 bits of a key are the entry's integer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from randlora_core import splitmix

BITS = 24
"""Random bits per entry."""

BLOCK_ELEMENTS = 2**17
"""Entries to make at once on a CPU: 1 MiB of 64-bit words stays in a core's cache."""


def integers(seed: int, name: str, shape: tuple[int, ...], rows: slice = slice(None)) -> np.ndarray:
    """The integers of a matrix.

    Args:
        seed: In [0, 2**63).
        name: Name of the matrix, at most 8 ASCII characters; different names are independent streams.
        shape: Shape of the matrix.
        rows: Part of the first axis to return.

    Returns:
        uint32 array of the shape, values in [0, 2**24).
    """
    keys = np.array(stream_key(seed, name)).view(np.uint64)
    for axis, size in enumerate(shape):
        keys = splitmix.outputs(keys, np.arange(size, dtype=np.uint64)[rows if axis == 0 else slice(None)])
    return (keys >> np.uint64(64 - BITS)).astype(np.uint32)


def integers_on(device: torch.device | str, key: int, shape: tuple[int, ...], rows: slice = slice(None)) -> Tensor:
    """The same integers, int64, computed on `device`; torch.compile can trace it.

    Args:
        device: Where to compute.
        key: From `stream_key`.
        shape: Shape of the matrix.
        rows: Part of the first axis to return.
    """
    keys = torch.full((), key, dtype=torch.int64, device=device)
    for axis, size in enumerate(shape):
        keys = splitmix.tensor_outputs(keys, torch.arange(size, device=device)[rows if axis == 0 else slice(None)])
    return splitmix.shift_right(keys, 64 - BITS)


def stream_key(seed: int, name: str) -> int:
    """The state of a matrix's stream, as the int64 with its bits."""
    word = splitmix.mix(seed) + int.from_bytes(name.encode("ascii").ljust(8, b"\0"), "little")
    return splitmix.as_signed(splitmix.mix(word & splitmix.MASK))


def row_blocks(shape: tuple[int, ...], elements: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Slices of the first axis that hold about `elements` entries each."""
    rows = max(1, elements // max(1, math.prod(shape[1:])))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))
