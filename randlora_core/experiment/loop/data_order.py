"""The order in which a run sees its training examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from randlora_core.experiment.loop.seeding import generator


class DataOrder:
    """An endless order of examples: one permutation per epoch, laid end to end, so that every batch is full.

    Args:
        num_examples: Examples in an epoch.
        seed: The run's seed; its stream data_order decides the permutations.
    """

    def __init__(self, num_examples: int, seed: int):
        self.num_examples, self.seed = num_examples, seed
        self._drawn: dict[int, list[int]] = {}

    def take(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Pairs (epoch, example) at positions start .. start + count - 1."""
        for position in range(start, start + count):
            epoch, offset = divmod(position, self.num_examples)
            yield epoch, self._permutation(epoch)[offset]

    def _permutation(self, epoch: int) -> list[int]:
        """An epoch's permutation; the last two are kept, since a batch may reach into the next epoch."""
        if epoch not in self._drawn:
            drawn = torch.randperm(self.num_examples, generator=generator(self.seed, "data_order", epoch)).tolist()
            self._drawn = {**dict(list(self._drawn.items())[-1:]), epoch: drawn}
        return self._drawn[epoch]
