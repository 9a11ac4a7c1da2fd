"""Loads the micro-batches of a training, and says how long each took to prepare."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def training_loader(batches: Dataset, indices: range, *, workers: int, pin_memory: bool) -> DataLoader:
    """The micro-batches of these indices, one by one, as (micro-batch, seconds).

    The seconds are what the micro-batch took to prepare where that is done, in this process or in a worker beside it.

    Args:
        batches: Micro-batch i, a tuple of CPU tensors; a function of i alone.
        indices: Which, in this order.
        workers: Processes that prepare them ahead; 0 prepares them in this one.
        pin_memory: Whether they are copied to memory from which a GPU reads faster.
    """
    return DataLoader(
        _Timed(batches),
        batch_size=1,
        sampler=indices,
        collate_fn=_only,
        num_workers=workers,
        pin_memory=pin_memory,
    )


class _Timed(Dataset):
    def __init__(self, batches: Dataset):
        self.batches = batches

    def __getitem__(self, index: int) -> tuple[Sequence[Tensor], float]:
        began = time.perf_counter()
        return self.batches[index], time.perf_counter() - began


def _only(fetched: Sequence[tuple[Sequence[Tensor], float]]) -> tuple[Sequence[Tensor], float]:
    """The one micro-batch that the loader was told to fetch."""
    (micro_batch,) = fetched
    return micro_batch
