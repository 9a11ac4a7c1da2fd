"""Groups of RandLoRA's bases: which numbers of groups are accepted, and the largest one for a set of layers.

With g groups the bases have a block structure, and equation 4 costs 1 / g of the work (`randlora_core.ops.blocks`).
A column of B_j Lambda_j is paired with a row of A Gamma_j', see `randlora_core.ops.factors`, such that in a layer of
n >= g bases every group of outputs reads every group of inputs, and the update has full rank. Where n < g it can lose
rank.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from randlora_core.adapters.config import positive_integer

MAX = "max"
"""Value of `groups` that stands for the largest number, see `largest_groups`."""


def check_groups(groups: int | str, *, allow_rank_loss: bool, distinct_a: bool, packed_bases: bool) -> None:
    """Refuse a number of groups, or settings beside it, that no layer can take.

    Raises:
        ValueError: If `groups` is neither a positive integer nor "max", or it is combined with a variant or a storage
            that is not defined for blocks, or `allow_rank_loss` has no effect.
    """
    if groups != MAX:
        positive_integer(f"groups, where it is not {MAX!r},", groups)
    if allow_rank_loss and groups in (1, MAX):
        raise ValueError(f"allow_rank_loss=True has no effect with groups={groups!r}")
    if distinct_a and groups != 1:
        raise ValueError(
            f"groups={groups!r} is not defined with distinct_a=True: its two factors are summed before their product, "
            "so that outputs would read the inputs of their own group only; use groups=1"
        )
    if packed_bases and groups != 1:
        raise ValueError(
            f"groups={groups!r} is not defined with packed_bases=True: bases in groups keep 1 / groups of the entries "
            "already; use packed_bases=False, or store_bases=False to keep none"
        )


def check_groups_on(name: str, groups: int, rank: int, num_bases: int, *, allow_rank_loss: bool) -> None:
    """Refuse a number of groups that the layer `name` of this rank and number of bases cannot take.

    Raises:
        ValueError: If it does not divide the rank, or is above the number of bases.
    """
    if rank % groups:
        divisors = ", ".join(str(g) for g in range(1, rank + 1) if rank % g == 0)
        raise ValueError(
            f"groups={groups} does not divide the rank {rank} of layer {name!r}; accepted: {divisors}, or {MAX!r}"
        )
    if groups > num_bases and not allow_rank_loss:
        raise ValueError(
            f"groups={groups} is above the {num_bases} bases of layer {name!r}, where the update may lose rank; use "
            "fewer groups, leave the layer out, or set allow_rank_loss=True"
        )


def largest_groups(ranks: Mapping[str, int], num_bases: Mapping[str, int]) -> int:
    """Finds the largest number of groups that divides every rank and is above no layer's number of bases.

    Args:
        ranks: Layer's name -> rank.
        num_bases: Layer's name -> number of bases.

    Warns:
        UserWarning: If it is smaller than the ranks allow, or 1; the layer or the ranks that decide are named.
    """
    common, fewest = math.gcd(*ranks.values()), min(num_bases, key=num_bases.__getitem__)
    groups = max(g for g in range(1, min(common, num_bases[fewest]) + 1) if common % g == 0)
    if 1 < groups == common:
        return groups
    if groups < common:
        reason = f"layer {fewest!r} has n = {num_bases[fewest]} bases: the ranks alone would allow {common}"
    else:
        reason = f"the ranks in use ({', '.join(map(str, sorted(set(ranks.values()))))}) have no larger common divisor"
    effect = "; bases are dense, and the update costs no less" if groups == 1 else ""
    warnings.warn(f"groups={MAX!r} becomes {groups}, since {reason}{effect}", stacklevel=6)
    return groups
