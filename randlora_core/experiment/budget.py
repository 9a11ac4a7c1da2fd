"""Equal budgets: the rank at which a method trains about as many parameters as asked for.

`adapter.budget=lora32` asks for as many as LoRA of rank 32 has on the same layers, `adapter.budget=500000` for that
many. The solved rank takes the place of the preset's before a run is identified: a run with a budget that gives rank 2
and one with `adapter.rank=2` are the same run, of the same label.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence

from randlora_core.adapters import METHODS
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.experiment.config import Budget, RunConfig
from randlora_core.experiment.interface import Experiment
from randlora_core.models.counts import closest_num_bases, closest_rank, count_trainable

BASES = ("num_bases_a", "num_bases_b")
"""What is solved for NoLA, whose parameters do not depend on its rank; both get the same value."""


LARGEST_ERROR = 0.5
"""How far from the budget the closest rank may be, as a fraction of the budget."""


def solve_budget(
    experiment: Experiment, config: RunConfig, asked: str | int, given: Sequence[str]
) -> tuple[tuple[str, ...], Budget]:
    """Solves a budget; of two ranks that are equally close, the one with fewer parameters counts.

    Args:
        experiment: Whose run it is.
        config: The run as it is without a budget.
        asked: "loraRANK", or a number of parameters.
        given: Names of the settings that the command line gives.

    Returns:
        Overrides with what is solved, to be put behind the run's own; and what it amounts to.

    Raises:
        ValueError: A budget that cannot be read or that no rank comes close to, a method without a rank, a rank beside
            the budget, or an experiment that does not say what its layers are.
    """
    adapter = config.adapter
    if adapter.method not in METHODS:
        raise ValueError(
            f"adapter.budget={asked!r}: method {adapter.method!r} has no rank to solve; accepted: {', '.join(METHODS)}"
        )
    fields = BASES if adapter.method == "nola" else ("rank",)
    for name in fields:
        if f"adapter.{name}" in given:
            raise ValueError(f"adapter.{name} and adapter.budget={asked!r} are both given; accepted: one of them")
    if adapter.options["rank_pattern"]:
        raise ValueError(
            f"adapter.rank_pattern has ranks beside those of adapter.budget={asked!r}; accepted: one of them"
        )
    if experiment.adapted_shapes is None:
        raise ValueError(
            f"adapter.budget={asked!r}: {experiment.name} does not know its layers; accepted: adapter.rank"
        )
    shapes = tuple(experiment.adapted_shapes(config).values())
    options = {name: value for name, value in adapter.options.items() if name not in ("seed", "rank", *fields)}
    parameters = _num_parameters(asked, shapes)
    value, trainable = _solve(adapter.method, json.dumps(options), shapes, parameters)
    if abs(trainable - parameters) > LARGEST_ERROR * parameters:
        _refuse(asked, parameters, f"{'rank' if fields == ('rank',) else BASES[0]} {value}", trainable)
    solved = [f"adapter.{name}={value}" for name in fields]
    if adapter.method == "nola" and "adapter.label" not in given:  # its preset's label has only the rank
        solved.append(f"adapter.label='{adapter.label} with {value} bases'")
    return tuple(solved), Budget(asked=asked, parameters=parameters, trainable=trainable)


@functools.lru_cache(maxsize=1024)
def _solve(method: str, options: str, shapes: tuple[Shape, ...], parameters: int) -> tuple[int, int]:
    """Rank or number of bases, and the parameters that a method has with it; once for the seeds and data of a sweep."""
    layers, fields = _named(shapes), json.loads(options)
    if method == "nola":
        value = closest_num_bases(layers, parameters)
        solved = {"rank": 1, **dict.fromkeys(BASES, value)}
    else:
        value = closest_rank(layers, method, parameters, **fields)
        solved = {"rank": value}
    return value, count_trainable(layers, method, **{**fields, **solved})


def _num_parameters(asked: str | int, shapes: Sequence[Shape]) -> int:
    match = re.fullmatch(r"lora([1-9]\d*)", asked) if isinstance(asked, str) else None
    if match:
        if int(match[1]) > (largest := min(min(shape) for shape in shapes)):
            reason = f"the smallest side of a layer is {largest}, and so is LoRA's largest rank"
            raise ValueError(f"adapter.budget={asked!r}: {reason}; accepted: lora1 to lora{largest}")
        return count_trainable(_named(shapes), "lora", int(match[1]))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        accepted = "loraRANK, such as lora32, or a whole number of parameters"
        raise ValueError(f"adapter.budget={asked!r}; accepted: {accepted}")
    return asked


def _refuse(asked: str | int, parameters: int, closest: str, trainable: int) -> None:
    """Refuses a budget beyond the smallest or largest count; between two of them one is always closer than that."""
    if trainable > parameters:
        accepted = f"at least {math.ceil(trainable / (1 + LARGEST_ERROR)):,}"
    else:
        accepted = f"at most {math.floor(trainable / (1 - LARGEST_ERROR)):,}"
    raise ValueError(
        f"adapter.budget={asked!r} is {parameters:,} parameters; the closest is {closest} with {trainable:,}; "
        f"accepted: {accepted} parameters"
    )


def _named(shapes: Sequence[Shape]) -> dict[str, Shape]:
    return {str(number): shape for number, shape in enumerate(shapes)}
