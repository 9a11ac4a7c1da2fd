"""Says what `python -m randlora_core.benchmark --groups` measures: step time against the number of groups of bases.

With g groups, a divisor of the rank r, RandLoRA's products cost 1 / g of those with dense bases (g = 1); what does not
have k = n r in it, and sorting tokens by group, costs the same for every g. All g of a case are stepped in turn, beside
LoRA of equal parameters and full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from randlora_core.benchmarking.cases import Case, vision_case
from randlora_core.benchmarking.methods import METHODS_BY_GROUPS

DEFAULT_RANK = 10
BLOCKS = (("ViT-S", 384, 16, 50), ("ViT-B", 768, 8, 50), ("ViT-B", 768, 64, 50), ("ViT-L", 1024, 16, 50))
"""Name, width, rows of a batch and tokens of a row: T / d of 2.1, 0.5, 4.2 and 0.8."""


def cases(rank: int, half: bool) -> tuple[Case, ...]:
    """Makes a case of one block each, with RandLoRA of this rank."""
    return tuple(vision_case(*block, rank=rank, half=half) for block in BLOCKS)


def methods(groups: Sequence[int]) -> tuple[str, ...]:
    """Names what is measured: LoRA, full fine-tuning, dense bases in any case, and bases in so many groups."""
    return ("full", "lora", *(METHODS_BY_GROUPS[g] for g in sorted({1, *groups})))


def chosen(rank: int | None, groups: Sequence[int], refuse: Callable[[str], None]) -> tuple[int, list[int]]:
    """Gives the rank and the numbers of groups to measure, all that there are where none is named.

    Refuses a rank above the width of a block, one that only dense bases fit, and groups that do not divide the rank or
    are more than a layer has bases.
    """
    rank, width = rank or DEFAULT_RANK, min(width for _, width, *_ in BLOCKS)
    if rank > width:
        refuse(f"--rank {rank} is above the smallest width of the blocks, {width}")
    accepted = [g for g in METHODS_BY_GROUPS if rank % g == 0 and g <= -(-width // rank)]
    if accepted == [1]:
        refuse(f"--rank {rank} has no number of groups between 1 and its bases; accepted: a rank that is no prime")
    for g in groups:
        if g not in accepted:
            refuse(f"--groups {g} with rank {rank}; accepted: {', '.join(map(str, accepted))}")
    return rank, list(groups) or accepted
