"""SplitMix64, which draws frozen bases, choices of data and augmentation: the same bits on every machine and device.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
https://doi.org/10.1145/2714064.2660195.

A stream is a 64-bit state, and its output number i is mix(state + (i + 1) STEP) modulo 2^64. Outputs are a function of
the state and of their position alone, so that any part of a stream can be computed without what comes before it.

The numpy form works on uint64. Torch has no arithmetic on uint64 on every device, so that form works on the int64 with
the same bits, whose sums and products wrap around in the same way.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

STEP = 0x9E3779B97F4A7C15
"""The state grows by this number from one output to the next."""

MASK = 2**64 - 1
"""The largest 64-bit word."""

_FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SHIFTS = 30, 27, 31

Words = TypeVar("Words", int, np.ndarray)


def outputs(states: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The outputs of streams at some positions.

    Args:
        states: uint64, any shape.
        positions: uint64 (count,), 0 for a stream's first output.

    Returns:
        uint64, the shape of `states` and then count.
    """
    return mix(states[..., None] + (positions + np.uint64(1)) * np.uint64(STEP))


def mix(words: Words) -> Words:
    """Scrambles 64-bit words, a bijection of the integers from 0 to 2^64 - 1.

    Args:
        words: uint64 of any shape, which may be changed in place, or a plain integer.
    """
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        words ^= words >> shift
        words *= factor
        words &= MASK  # an array wraps around by itself, a plain integer grows
    words ^= words >> _SHIFTS[-1]
    return words


def tensor_outputs(states: Tensor, positions: Tensor) -> Tensor:
    """Gives the same as `outputs`, on int64 tensors of any device; torch.compile can trace it."""
    words = states[..., None] + (positions + 1) * as_signed(STEP)
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        words ^= shift_right(words, shift)
        words *= as_signed(factor)
    words ^= shift_right(words, _SHIFTS[-1])
    return words


def shift_right(words: Tensor, places: int) -> Tensor:
    """Shifts int64 right and fills with zeros; torch's own shift fills with the sign."""
    return (words >> places) & (2 ** (64 - places) - 1)


def as_signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - 2**64 if word >= 2**63 else word
