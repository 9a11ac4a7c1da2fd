"""The goals on time and memory, and whether measurements meet them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from randlora_core.benchmarking.cases import Case
from randlora_core.benchmarking.measure import Timing


@dataclass(frozen=True)
class Verdict:
    """One goal on one case.

    Attributes:
        goal: The goal in words, with its letter.
        value: What was measured.
        limit: The most that meets the goal.
    """

    goal: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.value <= self.limit


def verdicts(case: Case, timings: Mapping[str, Timing]) -> list[Verdict]:
    """The goals that apply to a case and can be told from the methods measured on it.

    (a) RandLoRA's step relative to PEFT's: at most 0.60 from T = 8 d, 0.70 from T = 4 d, and nowhere slower than it by
    more than the interquartile range of the rounds. (b) In float32, relative to full fine-tuning: 1.05 from T = 16 d
    and 1.10 from T = 4 d for a block; for a lone layer its arithmetic, 1 + d / T, plus 5 %. (c) Peak memory relative
    to LoRA's with equal parameters, from T = 4 d: the paper's batches; below, the sizes of the weights decide. LoRA,
    DoRA and VeRA: no slower than PEFT's by more than the interquartile range.
    """
    found = []
    ours = timings["randlora"]
    if "peft_randlora" in timings:
        found.append(_against_peft(case, ours, timings["peft_randlora"]))
    if "full" in timings and not case.half and (limit := _full_limit(case)) is not None:
        ratio = ours.ratio_to(timings["full"])[1]
        found.append(Verdict("(b) step time / full fine-tuning", ratio, limit))
    if "lora" in timings and ours.peak_bytes and case.tokens_per_side >= 4:
        ratio = ours.peak_bytes / timings["lora"].peak_bytes
        found.append(Verdict("(c) peak memory / LoRA with equal parameters", ratio, case.memory_limit))
    for method, name in (("lora", "LoRA"), ("dora", "DoRA"), ("vera", "VeRA")):
        if method in timings and f"peft_{method}" in timings:
            first, ratio, third = timings[method].ratio_to(timings[f"peft_{method}"])
            found.append(Verdict(f"{name}'s step time / PEFT's {name}", ratio, 1.0 + (third - first)))
    return found


def _against_peft(case: Case, ours: Timing, pefts: Timing) -> Verdict:
    first, ratio, third = ours.ratio_to(pefts)
    if case.tokens_per_side >= 8:
        limit = 0.60
    elif case.tokens_per_side >= 4:
        limit = 0.70
    else:
        limit = 1.0 + (third - first)
    return Verdict("(a) step time / PEFT's RandLoRA", ratio, limit)


def _full_limit(case: Case) -> float | None:
    if case.tokens_per_side < 4:
        return None
    if case.kind == "layer":
        return (1.0 + 1.0 / case.tokens_per_side) * 1.05
    return 1.05 if case.tokens_per_side >= 16 else 1.10
