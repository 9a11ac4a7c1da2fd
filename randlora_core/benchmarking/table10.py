"""Time and memory beside the paper's Table 10, from one and two blocks of each model at the paper's batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from randlora_core.benchmarking.cases import Case, language_case, vision_case
from randlora_core.benchmarking.measure import Timing, measure, measure_memory

METHODS = ("full", "lora", "dora", "randlora", "peft_randlora")

PUBLISHED: dict[str, dict[str, tuple[int | None, int | None]]] = {
    "CLIP ViT-B/32": {"lora": (90, 81), "randlora": (113, 78), "full": (100, 100)},
    "CLIP ViT-L/14": {"lora": (95, 72), "randlora": (128, 71), "full": (100, 100)},
    "CLIP ViT-H/14": {"lora": (96, 54), "randlora": (122, 51), "full": (100, 100)},
    "Llama-3-8B": {"lora": (100, 100), "dora": (220, 102), "randlora": (167, 102)},
}
"""Table 10 of https://arxiv.org/abs/2502.00987v2: model -> method -> (training time, memory) in percent of full
fine-tuning, for Llama-3 of LoRA-32."""


@dataclass(frozen=True)
class Stack:
    """A model as equal blocks.

    Attributes:
        model: Name in `PUBLISHED`.
        depth: Blocks in the model.
        baseline: What is 100 percent.
        blocks: Gives the case of so many blocks at the paper's batch size.
        tokens: Gives the case of one block with about so many tokens, for step times.
    """

    model: str
    depth: int
    baseline: str
    blocks: Callable[[int], Case]
    tokens: Callable[[int], Case]


def _vision(model: str, depth: int, width: int, batch: int, length: int, rank: int) -> Stack:
    return Stack(
        model,
        depth,
        "full",
        blocks=lambda blocks: vision_case(model, width, batch, length, rank, depth=blocks),
        tokens=lambda tokens: vision_case(model, width, max(1, min(batch, tokens // length)), length, rank),
    )


LLAMA_SIZES = (4096, 14336, 1024)

STACKS = (
    _vision("CLIP ViT-B/32", 12, 768, 128, 50, rank=6),
    _vision("CLIP ViT-L/14", 24, 1024, 64, 257, rank=10),
    _vision("CLIP ViT-H/14", 32, 1280, 32, 257, rank=10),
    Stack(
        "Llama-3-8B",
        32,
        "lora",
        blocks=lambda blocks: language_case(
            "Llama-3-8B", LLAMA_SIZES, 4, 256, rank=15, depth=blocks, memory_limit=1.05
        ),
        tokens=lambda tokens: language_case(
            "Llama-3-8B", LLAMA_SIZES, max(1, min(4, tokens // 256)), 256, rank=15, memory_limit=1.05
        ),
    ),
)
"""Batch sizes of the paper's runs: 128, 64 and 32 images, 4 rows of 256 tokens; RandLoRA's rank is not printed in the
table and is that of its accuracy tables."""


def measure_stack(
    stack: Stack, *, rounds: int, seconds: float, tokens: int, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of a model: percent of the baseline here and in the paper.

    Memory at the paper's batch is that of one and of two blocks, carried on to the model's depth: peak(1) +
    (depth - 1) (peak(2) - peak(1)); embeddings and heads are left out. Time is of one block with `tokens` tokens.
    """
    timed = _by_method(
        measure(stack.tokens(tokens), METHODS, rounds=rounds, seconds=seconds, device=device, memory=False)
    )
    one, two = (measure_memory(stack.blocks(blocks), METHODS, device=device) for blocks in (1, 2))
    peaks = {name: one[name][0] + (stack.depth - 1) * (two[name][0] - one[name][0]) for name in one}
    return list(_percentages(stack, timed, peaks, one[stack.baseline][1], tokens))


def _percentages(
    stack: Stack, timed: dict[str, Timing], peaks: dict[str, int], counter: str, tokens: int
) -> Iterator[dict[str, Any]]:
    for name in METHODS:
        first, median, third = (100 * value for value in timed[name].ratio_to(timed[stack.baseline]))
        paper_time, paper_memory = PUBLISHED[stack.model].get(name, (None, None))
        yield {
            "model": stack.model,
            "method": name,
            "baseline": stack.baseline,
            "time_percent": round(median, 1),
            "time_percent_q1": round(first, 1),
            "time_percent_q3": round(third, 1),
            "paper_time_percent": paper_time,
            "memory_percent": round(100 * peaks[name] / peaks[stack.baseline], 1),
            "paper_memory_percent": paper_memory,
            "peak_bytes_extrapolated": peaks[name],
            "counter": counter,
            "timed_tokens": stack.tokens(tokens).tokens,
            "batch_tokens": stack.blocks(1).tokens,
        }


def _by_method(timings: list[Timing]) -> dict[str, Timing]:
    return {timing.method: timing for timing in timings}
