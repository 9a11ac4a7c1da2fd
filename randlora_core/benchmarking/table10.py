"""Measures time and memory beside the paper's Table 10, on one and two blocks of each model at the paper's batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from randlora_core.benchmarking.cases import Case, block_sizes, language_case, vision_case
from randlora_core.benchmarking.goals import BLOCKS, Verdict, peft_limit
from randlora_core.benchmarking.measure import Timing, measure, measure_memory
from randlora_core.benchmarking.whole_models import KNOWN
from randlora_core.models.language_models import LANGUAGE_MODELS

TABLE10_METHODS = ("full", "lora", "dora", "randlora", "randlora_blocks", "peft_randlora")

PUBLISHED: dict[str, dict[str, tuple[int | None, int | None]]] = {
    "CLIP ViT-B/32": {"lora": (90, 81), "randlora": (113, 78), "full": (100, 100)},
    "CLIP ViT-L/14": {"lora": (95, 72), "randlora": (128, 71), "full": (100, 100)},
    "CLIP ViT-H/14": {"lora": (96, 54), "randlora": (122, 51), "full": (100, 100)},
    "Llama-3-8B": {"lora": (100, 100), "dora": (220, 102), "randlora": (167, 102)},
}
"""Table 10 of https://arxiv.org/abs/2502.00987v2: model -> method -> (training time, memory) in percent of full
fine-tuning, for Llama-3 of LoRA-32."""


COLUMNS = ("model", "method", "baseline", "time_percent", "time_percent_q1", "time_percent_q3", "memory_percent")
COLUMNS += ("peak_bytes_extrapolated", "format", "counter", "timed_tokens", "hardware")
"""Columns in which every row of `measure_stack` has a value."""


@dataclass(frozen=True)
class Stack:
    """Describes a model as equal blocks.

    Attributes:
        model: Name in `PUBLISHED`.
        depth: Blocks in the model.
        baseline: What is 100 percent.
        batch: The paper's batch size.
        length: Tokens of a row.
        block: Gives the case of (rows of a batch, number of blocks, whether under bfloat16 autocast).
    """

    model: str
    depth: int
    baseline: str
    batch: int
    length: int
    block: Callable[[int, int, bool], Case]

    def for_memory(self, blocks: int, half: bool) -> Case:
        """Makes a case of so many blocks at the paper's batch size."""
        return self.block(self.batch, blocks, half)

    def for_time(self, tokens: int, half: bool) -> Case:
        """Makes a case of one block with about so many tokens, at most the paper's."""
        return self.block(max(1, min(self.batch, tokens // self.length)), 1, half)


def _vision(model: str, name: str, depth: int, batch: int) -> Stack:
    known = KNOWN[name]

    def block(rows: int, blocks: int, half: bool) -> Case:
        return vision_case(model, known.smaller, rows, known.length, known.rank, depth=blocks, half=half)

    return Stack(model, depth, "full", batch, known.length, block)


def _llama() -> Stack:
    name, label = "llama3_8b", "Llama-3-8B"
    known, sizes, depth = KNOWN[name], block_sizes(name), LANGUAGE_MODELS[name].sizes["num_hidden_layers"]

    def block(rows: int, blocks: int, half: bool) -> Case:
        return language_case(label, sizes, rows, known.length, known.rank, depth=blocks, half=half, memory_limit=1.05)

    return Stack(label, depth, "lora", 4, known.length, block)


STACKS = (
    _vision("CLIP ViT-B/32", "clip_vit_b32", 12, 128),
    _vision("CLIP ViT-L/14", "clip_vit_l14", 24, 64),
    _vision("CLIP ViT-H/14", "clip_vit_h14", 32, 32),
    _llama(),
)
"""Batch sizes of the paper's runs: 128, 64 and 32 images, 4 rows of 256 tokens. RandLoRA's rank is not printed in the
table; it is that of the paper's Table 8, and for Llama-3 the one with the parameters of LoRA-32."""

MOST_TOKENS = max(stack.batch * stack.length for stack in STACKS)
"""Tokens of the largest of the paper's batches, above which more make no difference to `measure_stack`."""


def measure_stack(
    stack: Stack, *, rounds: int, seconds: float, tokens: int, device: torch.device, half: bool = False
) -> list[dict[str, Any]]:
    """Measures a model and gives its rows: percent of the baseline here and in the paper.

    Memory at the paper's batch is that of one and of two blocks, carried on to the model's depth: peak(1) +
    (depth - 1) (peak(2) - peak(1)); embeddings and heads are left out. Time is of one block with `tokens` tokens.
    """
    case = stack.for_time(tokens, half)
    timed = {
        timing.method: timing
        for timing in measure(case, TABLE10_METHODS, rounds=rounds, seconds=seconds, device=device, memory=False)
    }
    one, two = (measure_memory(stack.for_memory(blocks, half), TABLE10_METHODS, device=device) for blocks in (1, 2))
    peaks = {name: one[name][0] + (stack.depth - 1) * (two[name][0] - one[name][0]) for name in one}
    common = {
        "format": case.format,
        "counter": one[stack.baseline][1],
        "timed_tokens": case.tokens,
        "batch_tokens": stack.batch * stack.length,
    }
    return [row | common for row in _percentages(stack, timed, peaks)]


def check_complete(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the rows of a file in which a model lacks a method; earlier files have none with bases in groups.

    Raises:
        ValueError: Naming the file, the model and the method.
    """
    for model in dict.fromkeys(row["model"] for row in rows):
        there = {row["method"] for row in rows if row["model"] == model}
        if absent := [method for method in TABLE10_METHODS if method not in (*there, BLOCKS)]:
            raise ValueError(f"{path}: {model} has no row of {absent[0]}")


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Judges goals (a) and (c) for each model in the rows of `measure_stack`, or of a file of them.

    And of bases in groups, which earlier files have not, (a), (c) and (d).
    """
    found = []
    for stack in STACKS:
        of_model = {row["method"]: row for row in rows if row["model"] == stack.model}
        if of_model:
            case = stack.for_memory(1, half=False)
            ours, theirs, lora = (of_model[method] for method in ("randlora", "peft_randlora", "lora"))
            first, median, third = (float(theirs[f"time_percent{which}"]) for which in ("_q1", "", "_q3"))
            limit = peft_limit(int(ours["timed_tokens"]) / case.smaller, (third - first) / median)
            goal = f"(a) {stack.model}, step time / PEFT's RandLoRA"
            found.append(Verdict(goal, _time_ratio(ours, theirs), limit))
            found.append(Verdict(f"(c) {stack.model}, {_MEMORY}", _memory_ratio(ours, lora), case.memory_limit))
            if blocks := of_model.get(BLOCKS):
                of = f"{stack.model}, step time /"
                found.append(Verdict(f"blocks (a) {of} LoRA's", _time_ratio(blocks, lora), case.blocks_limit))
                found.append(Verdict(f"blocks (c) {of} full fine-tuning", _time_ratio(blocks, of_model["full"]), 1.0))
                found.append(Verdict(f"blocks (d) {stack.model}, {_MEMORY}", _memory_ratio(blocks, lora), 1.02))
    return found


_MEMORY = "peak memory / LoRA with equal parameters"


def _time_ratio(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return float(row["time_percent"]) / float(other["time_percent"])


def _memory_ratio(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return int(row["peak_bytes_extrapolated"]) / int(other["peak_bytes_extrapolated"])


def _percentages(stack: Stack, timed: dict[str, Timing], peaks: dict[str, int]) -> Iterator[dict[str, Any]]:
    for name in TABLE10_METHODS:
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
        }
