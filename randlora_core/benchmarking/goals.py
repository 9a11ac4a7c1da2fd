"""States the goals on time and memory, and tells whether measurements meet them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""What `randlora_core.benchmarking.report` keeps of a method on a case: numbers, or their text from a CSV file."""

BLOCKS = "randlora_blocks"
"""Method with bases in groups, which has goals of its own."""

OWN_METHODS = {"randlora": "RandLoRA", "lora": "LoRA", "dora": "DoRA", "vera": "VeRA"}
"""Methods here that PEFT has, too -> their names in words."""


@dataclass(frozen=True)
class Verdict:
    """Compares one goal with what was measured on one case.

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

    def __str__(self) -> str:
        word = "met" if self.met else "NOT met"
        return f"{self.goal}: {self.value:.3f}, at most {self.limit:.3f}: {word}"


def verdicts(rows: Mapping[str, Row]) -> list[Verdict]:
    """Judges the goals that apply to a case and can be told from the methods measured on it.

    (a) RandLoRA's step relative to PEFT's: at most 0.60 from T = 8 d, 0.70 from T = 4 d, and nowhere slower than it by
    more than the interquartile range of the rounds. (b) In float32, relative to full fine-tuning: 1.05 from T = 16 d
    and 1.10 from T = 4 d for a block; for a lone layer its arithmetic, 1 + d / T, plus 5 %. (c) Peak memory relative
    to LoRA's with equal parameters, from T = 4 d: the paper's batches; below, the sizes of the weights decide. LoRA,
    DoRA and VeRA: no slower than PEFT's by more than the interquartile range.

    RandLoRA with bases in groups: (a) its step relative to that of LoRA with equal parameters: 1.15, and 1.10 for
    blocks of language models; for a lone layer there is no goal. (b) No slower than with dense bases by more than the
    interquartile range. (c) No slower than full fine-tuning from T = d. (d) Peak memory at most LoRA's plus 2 %.

    Args:
        rows: Method -> its row.
    """
    ours, found = rows["randlora"], []
    tokens_per_side = float(ours["tokens_per_side"])
    if _has(ours, "to_peft"):
        limit = peft_limit(tokens_per_side, _spread(ours))
        found.append(Verdict("(a) step time / PEFT's RandLoRA", float(ours["to_peft"]), limit))
    limit = _full_limit(ours["kind"], tokens_per_side)
    if _has(ours, "to_full") and ours["format"] == "float32" and limit is not None:
        found.append(Verdict("(b) step time / full fine-tuning", float(ours["to_full"]), limit))
    if "lora" in rows and int(ours["peak_bytes"]) and tokens_per_side >= 4:
        ratio = int(ours["peak_bytes"]) / int(rows["lora"]["peak_bytes"])
        found.append(Verdict("(c) peak memory / LoRA with equal parameters", ratio, float(ours["memory_limit"])))
    for method, name in OWN_METHODS.items():
        if method != "randlora" and method in rows and _has(rows[method], "to_peft"):
            row = rows[method]
            found.append(Verdict(f"{name}'s step time / PEFT's {name}", float(row["to_peft"]), 1.0 + _spread(row)))
    return [*found, *(_blocks_verdicts(rows[BLOCKS], rows.get("lora")) if BLOCKS in rows else ())]


def _blocks_verdicts(row: Row, lora: Row | None) -> list[Verdict]:
    """Judges the goals of bases in groups."""
    found = []
    if _has(row, "to_lora") and row["kind"] != "layer":
        goal = "blocks (a) step time / LoRA with equal parameters"
        found.append(Verdict(goal, float(row["to_lora"]), float(row["blocks_limit"])))
    if _has(row, "to_dense"):
        limit = 1.0 + float(row["to_dense_q3"]) - float(row["to_dense_q1"])
        found.append(Verdict("blocks (b) step time / dense bases", float(row["to_dense"]), limit))
    if _has(row, "to_full") and float(row["tokens_per_side"]) >= 1:
        found.append(Verdict("blocks (c) step time / full fine-tuning", float(row["to_full"]), 1.0))
    if lora is not None and int(row["peak_bytes"]):
        ratio = int(row["peak_bytes"]) / int(lora["peak_bytes"])
        found.append(Verdict("blocks (d) peak memory / LoRA with equal parameters", ratio, 1.02))
    return found


def peft_limit(tokens_per_side: float, spread: float) -> float:
    """Gives the largest ratio that meets goal (a) at T / d, where `spread` is the interquartile range of the ratio."""
    return 0.60 if tokens_per_side >= 8 else 0.70 if tokens_per_side >= 4 else 1.0 + spread


def _has(row: Row, column: str) -> bool:
    return row.get(column) not in (None, "")


def _spread(row: Row) -> float:
    return float(row["to_peft_q3"]) - float(row["to_peft_q1"])


def _full_limit(kind: str, tokens_per_side: float) -> float | None:
    if tokens_per_side < 4:
        return None
    if kind == "layer":
        return (1.0 + 1.0 / tokens_per_side) * 1.05
    return 1.05 if tokens_per_side >= 16 else 1.10
