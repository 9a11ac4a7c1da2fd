"""Randomness with an owner: every stream is a function of the run's seed, its name and a counter.

Nothing is carried from step to step, so that a resumed run needs no generator state and a change of one stream leaves
the others alone.
"""

from __future__ import annotations

import hashlib

import torch

STREAMS = ("initialisation", "data_order", "dropout")
"""Streams of a run. Bases, few-shot choice and augmentation have generators of their own, see adapters and datasets."""


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit seed of its own for one use of one stream.

    Args:
        seed: The run's seed.
        stream: A name of `STREAMS`.
        *counters: Epoch, step or whatever numbers the uses of the stream.

    Returns:
        An integer in [0, 2**63).

    Raises:
        ValueError: Unknown stream.
    """
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}; known: {', '.join(STREAMS)}")
    text = "/".join(map(str, (seed, stream, *counters)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, stream: str, *counters: int) -> torch.Generator:
    """A CPU generator for one use of one stream; arguments as in `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, *counters))


def seed_global(seed: int, stream: str, *counters: int) -> None:
    """Sets torch's global generators, which modules use for initialisation and dropout."""
    torch.manual_seed(derive_seed(seed, stream, *counters))
