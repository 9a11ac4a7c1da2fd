"""Random numbers for data that depend on keys alone: the same on every machine and with every library version."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from randlora_core.splitmix import MASK, STEP, mix, outputs

Item = TypeVar("Item")


class Stream:
    """A stream of random numbers that its keys alone decide, made by SplitMix64.

    Args:
        *keys: What the numbers are for, in order: strings and integers of any size and sign. Streams whose keys differ
            in value, type or order are independent.
    """

    def __init__(self, *keys: str | int) -> None:
        digest = hashlib.sha256(repr(keys).encode()).digest()
        self._state = int.from_bytes(digest[:8], "little")

    def bits(self) -> int:
        """Returns the next 64 random bits as an integer in [0, 2**64)."""
        self._state = (self._state + STEP) & MASK
        return mix(self._state)

    def array(self, count: int) -> np.ndarray:
        """Returns the next `count` values of `bits` as an array of uint64."""
        values = outputs(np.array(self._state, dtype=np.uint64), np.arange(count, dtype=np.uint64))
        self._state = (self._state + count * STEP) & MASK
        return values

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Returns a number drawn uniformly from [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, bound: int) -> int:
        """Returns an integer drawn uniformly from [0, bound), for bounds far below 2**64."""
        return (self.bits() * bound) >> 64

    def choice(self, items: Sequence[Item]) -> Item:
        """Returns one of `items`, each with equal probability."""
        return items[self.integer(len(items))]
