"""Texts as batches: for training a function of their number, elsewhere all of them, longest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from commonsense_reasoning.prompts import EncodedExample
from randlora_core.experiment.loop.data_order import DataOrder
from randlora_core.experiment.loop.seeding import generator

LossOn = Literal["full", "answer"]

GROUP_BATCHES = 50
"""Micro-batches whose examples are sorted by length together, so that less is padded."""


def pad(
    rows: Sequence[Sequence[int]], filler: int, side: Literal["left", "right"], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Texts as one tensor.

    Returns:
        Tokens (B, L) and a mask (B, L), both int64; the mask is 1 where there is text, whatever the filler is.
    """
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), filler)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(len(row))
        tokens[number, place], mask[number, place] = torch.tensor(row), 1
    return tokens.to(device), mask.to(device)


def batches_of_similar_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The places of all texts, the longest first, so that what does not fit into memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def collate(examples: Sequence[EncodedExample], filler: int, loss_on: LossOn) -> tuple[Tensor, Tensor]:
    """Pads examples at their end to the longest one.

    Nothing attends to what follows it, so padding needs no attention mask; and it carries no loss, because that is told
    by positions. So the filler may be a token that also stands in the texts, such as the end token.

    Args:
        examples: The examples.
        filler: The token that padding consists of.
        loss_on: "full" for a loss on prompt and answer, "answer" for one on the answer and its end alone.

    Returns:
        Tokens (B, L), int64, and the tokens that are to be predicted (B, L), bool; never a text's first token.
    """
    tokens, _ = pad([example.tokens for example in examples], filler, "right", torch.device("cpu"))
    is_target = torch.zeros_like(tokens, dtype=torch.bool)
    for row, example in enumerate(examples):
        first = example.answer_start if loss_on == "answer" else 0
        is_target[row, max(first, 1) : len(example.tokens)] = True
        if loss_on == "answer":
            for begin, end in example.given:
                is_target[row, begin:end] = False
    return tokens, is_target


class ExampleBatches(Dataset):
    """Micro-batch i as (tokens, is_target), see `collate`.

    Args:
        examples: The training examples.
        batch_size: Examples per micro-batch.
        num_batches: How many micro-batches there are.
        seed: The run's seed; its stream data_order decides the order.
        filler: As for `collate`.
        loss_on: As for `collate`.
        group_by_length: Form micro-batches of examples of similar length, within groups of `GROUP_BATCHES`.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        filler: int,
        loss_on: LossOn,
        group_by_length: bool,
    ):
        self.examples, self.batch_size, self.num_batches = examples, batch_size, num_batches
        self.seed, self.filler, self.loss_on, self.group_by_length = seed, filler, loss_on, group_by_length
        self.order = DataOrder(len(examples), seed)
        self._group: tuple[int, list[list[int]]] = (-1, [])

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.num_batches:
            raise IndexError(index)
        return collate([self.examples[place] for place in self._chosen(index)], self.filler, self.loss_on)

    def num_tokens(self, index: int) -> int:
        """Tokens in a micro-batch, padding left out."""
        return sum(len(self.examples[place].tokens) for place in self._chosen(index))

    def _chosen(self, index: int) -> list[int]:
        """The places of a micro-batch's examples."""
        if not self.group_by_length:
            return self._take(index, 1)
        number, place = divmod(index, GROUP_BATCHES)
        if self._group[0] != number:
            self._group = (number, self._grouped(number))
        return self._group[1][place]

    def _take(self, first: int, count: int) -> list[int]:
        """The places of the examples of `count` micro-batches in the order of the epochs."""
        return [place for _, place in self.order.take(first * self.batch_size, count * self.batch_size)]

    def _grouped(self, number: int) -> list[list[int]]:
        """A group's micro-batches, each of similar lengths, in random order."""
        first = number * GROUP_BATCHES
        count = min(GROUP_BATCHES, self.num_batches - first)
        by_length = sorted(self._take(first, count), key=lambda place: len(self.examples[place].tokens))
        order = torch.randperm(count, generator=generator(self.seed, "data_order", number, GROUP_BATCHES)).tolist()
        return [by_length[place * self.batch_size : (place + 1) * self.batch_size] for place in order]


def validation_batches(
    examples: Sequence[EncodedExample], *, batch_size: int, filler: int, loss_on: LossOn
) -> Iterator[tuple[Tensor, Tensor]]:
    """All examples in batches of similar length, as `collate` gives them."""
    for places in batches_of_similar_length([len(example.tokens) for example in examples], batch_size):
        yield collate([examples[place] for place in places], filler, loss_on)
