"""Groups of RandLoRA's bases: which numbers of groups are accepted, and the largest one for a set of layers.

With g groups the bases have a block structure, and equation 4 costs 1 / g of the work (`randlora_core.ops.blocks`).
A column of B_j Lambda_j is paired with a row of A Gamma_j', see `randlora_core.ops.factors`, such that in a layer of
n >= g bases every group of outputs reads every group of inputs. The update has full rank there, as far as its values
have been examined: in float64 on every layer shape of the paper's models. Where n < g it can lose rank.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from randlora_core.adapters.config import positive_integer
from randlora_core.adapters.layer_kinds import Shape

if TYPE_CHECKING:
    from randlora_core.adapters.randlora import RandLoRAConfig

MAX = "max"
"""Value of `groups` that stands for the largest number, see `largest_groups`."""


def check_groups(config: RandLoRAConfig) -> None:
    """Refuse a number of groups, or settings beside it, that no layer can take.

    Raises:
        ValueError: If `groups` is neither a positive integer nor "max", or it is combined with a variant or a storage
            that is not defined for blocks, or `allow_rank_loss` has no effect.
    """
    if config.groups != MAX:
        positive_integer("groups, where it is not 'max',", config.groups)
    if config.allow_rank_loss and config.groups in (1, MAX):
        raise ValueError(f"allow_rank_loss=True has no effect with groups={config.groups!r}")
    if config.groups == 1:
        return
    if config.distinct_a:
        raise ValueError(
            f"groups={config.groups!r} is not defined with distinct_a=True: its two factors are summed before their "
            "product, and outputs would read the inputs of their own group only; use groups=1"
        )
    if config.packed_bases:
        raise ValueError(
            f"groups={config.groups!r} is not defined with packed_bases=True: bases in groups keep 1 / groups of the "
            "entries already, and those of B are of the distribution that packing is not for; use store_bases=False"
        )


def check_groups_on(config: RandLoRAConfig, name: str, shape: Shape) -> None:
    """Refuse a number of groups that the layer `name` cannot take.

    Raises:
        ValueError: If it does not divide the layer's rank, or is above the layer's number of bases.
    """
    if config.rank % config.groups:
        divisors = ", ".join(str(g) for g in range(1, config.rank + 1) if config.rank % g == 0)
        raise ValueError(
            f"groups={config.groups} does not divide the rank {config.rank} of layer {name!r}; accepted: {divisors}, "
            f"or {MAX!r}"
        )
    if config.groups > (n := config.bases_on(shape)) and not config.allow_rank_loss:
        raise ValueError(
            f"groups={config.groups} is above the {n} bases of layer {name!r} of shape {tuple(shape)}, where the "
            "update may lose rank; use fewer groups, leave the layer out, or set allow_rank_loss=True"
        )


def largest_groups(config: RandLoRAConfig, shapes: Mapping[str, Shape]) -> int:
    """Finds the largest number of groups that divides every rank in use and is above no layer's number of bases.

    Args:
        config: Settings with `groups` "max".
        shapes: Target's name -> (out, in).

    Warns:
        UserWarning: If it is smaller than the ranks allow, or 1; the layer or the ranks that decide are named.
    """
    layers = {name: dataclasses.replace(config, groups=1).for_layer(name) for name in shapes}
    ranks = sorted({layer.rank for layer in layers.values()})
    bases = {name: layer.bases_on(shapes[name]) for name, layer in layers.items()}
    common, fewest = math.gcd(*ranks), min(bases, key=bases.__getitem__)
    groups = max(g for g in range(1, min(common, bases[fewest]) + 1) if common % g == 0)
    if groups < common:
        reason = f"layer {fewest!r} of shape {tuple(shapes[fewest])} has n = {bases[fewest]} bases"
    else:
        reason = f"the ranks in use ({', '.join(map(str, ranks))}) have no larger common divisor"
    effect = "bases are dense, and the update costs no less" if groups == 1 else f"the ranks alone would allow {common}"
    if groups == 1 or groups < common:
        warnings.warn(f"groups={MAX!r} becomes {groups}, since {reason}: {effect}", stacklevel=5)
    return groups
