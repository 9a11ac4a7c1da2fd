"""Counter-based random numbers in plain integers: the same on every machine and with every library version."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_MASK = 0xFFFFFFFFFFFFFFFF
_STEP = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB

Item = TypeVar("Item")


class Stream:
    """A stream of random numbers that its keys alone decide (SplitMix64, Steele, Lea and Flood, OOPSLA 2014).

    Args:
        *keys: What the numbers are for, in order: strings and integers of any size and sign. Streams whose keys differ
            in value, type or order are independent.
    """

    def __init__(self, *keys: str | int) -> None:
        digest = hashlib.sha256(repr(keys).encode()).digest()
        self._state = int.from_bytes(digest[:8], "little")

    def bits(self) -> int:
        """Returns the next 64 random bits as an integer in [0, 2**64)."""
        self._state = (self._state + _STEP) & _MASK
        value = self._state
        value = ((value ^ (value >> 30)) * _FIRST_FACTOR) & _MASK
        value = ((value ^ (value >> 27)) * _SECOND_FACTOR) & _MASK
        return value ^ (value >> 31)

    def array(self, count: int) -> np.ndarray:
        """Returns the next `count` values of `bits` as an array of uint64."""
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
        value = steps + np.uint64(self._state)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_FIRST_FACTOR)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_SECOND_FACTOR)
        self._state = (self._state + count * _STEP) & _MASK
        return value ^ (value >> np.uint64(31))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Returns a number drawn uniformly from [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, bound: int) -> int:
        """Returns an integer drawn uniformly from [0, bound), for bounds far below 2**64."""
        return (self.bits() * bound) >> 64

    def choice(self, items: Sequence[Item]) -> Item:
        """Returns one of `items`, each with equal probability."""
        return items[self.integer(len(items))]
