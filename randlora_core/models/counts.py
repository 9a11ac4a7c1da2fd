"""Trainable parameters of every method on the paper's models: `python -m randlora_core.models.counts [NAME ...]`.

Nothing is downloaded or allocated: the models are shapes on the meta device, and each method says what it would train
on a layer of a given shape. Percent is of all parameters with the adapter, as in the paper's tables.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from randlora_core.adapters import METHODS, make_config
from randlora_core.adapters.targets import find_targets
from randlora_core.command_line import CommandParser, run_command
from randlora_core.models.architectures import ARCHITECTURES, Architecture, build_architecture

Shapes = Mapping[str, tuple[int, int]]

REFERENCE = ("lora", 32)
LANGUAGE_ROWS = (("lora", 16), ("lora", 32), ("lora", 64), ("dora", 16), ("vera", 256), ("vera", 1024), ("nola", 1))
# Method and rank of the paper's tables, by model.
ROWS: dict[str, tuple[tuple[str, int], ...]] = {
    "clip_vit_b32": (("lora", 32), ("randlora", 6), ("vera", 256), ("nola", 1)),
    "clip_vit_l14": (("lora", 32), ("randlora", 8), ("randlora", 10), ("vera", 256), ("nola", 1)),
    "clip_vit_h14": (("lora", 32), ("randlora", 10), ("vera", 1024), ("nola", 1)),
    "dinov2_vit_b14": (("lora", 32), ("randlora", 6), ("randlora", 8), ("vera", 256), ("nola", 1)),
    "qwen2_05b": (*LANGUAGE_ROWS, ("randlora", 10), ("randlora", 6), ("randlora", 5)),
    "phi3_mini": (*LANGUAGE_ROWS, ("randlora", 40), ("randlora", 20), ("randlora", 10)),
    "llama3_8b": (*LANGUAGE_ROWS, ("randlora", 60), ("randlora", 30), ("randlora", 15)),
}


@dataclass(frozen=True)
class ParameterCount:
    """One row of the table.

    Attributes:
        model: Name in `ARCHITECTURES`.
        scope: "full", or "vision" for the vision tower of a CLIP model alone.
        method: Name in `METHODS`.
        rank: The method's rank.
        trainable: Parameters that train.
        percent: 100 trainable / (frozen parameters of the scope + trainable).
        ratio: trainable / LoRA-32's on the same layers.
    """

    model: str
    scope: str
    method: str
    rank: int
    trainable: int
    percent: float
    ratio: float


def count_trainable(shapes: Shapes, method: str, rank: int, **fields: Any) -> int:
    """Parameters that `method` trains on layers of the given shapes, with the same settings on all of them.

    Args:
        shapes: (out, in) of every adapted layer, by name.
        method: A key of `METHODS`.
        rank: The method's rank.
        fields: Further fields of the method's config.
    """
    config = make_config(method, rank=rank, **fields)
    update = METHODS[method].update
    return sum(number * update.num_parameters(config, shape) for shape, number in Counter(shapes.values()).items())


def closest_rank(shapes: Shapes, method: str, budget: int, **fields: Any) -> int:
    """The rank whose trainable parameters come closest to `budget`; of two equally close ones that with fewer.

    No rank above the smallest side of a layer is considered, but for a method to which that is no limit (VeRA).

    Args:
        shapes: (out, in) of every adapted layer, by name.
        method: A key of `METHODS`.
        budget: Number of trainable parameters to come close to, at least 1.
        fields: Further fields of the method's config.

    Raises:
        ValueError: If the budget is below 1, no layer is given, or the method's count does not depend on the rank.
    """
    if budget < 1 or not shapes:
        raise ValueError(f"closest_rank needs a budget of at least 1 and some layers, not {budget} and {len(shapes)}")
    first, second = (count_trainable(shapes, method, rank, **fields) for rank in (1, 2))
    if METHODS[method].update.limits_rank:
        ranks = range(1, min(min(shape) for shape in shapes.values()) + 1)
    else:  # the parameters grow by the same number with every rank
        ranks = _around((budget - first) / (second - first) + 1)
    counts = {rank: count_trainable(shapes, method, rank, **fields) for rank in ranks}
    if len(set(counts.values())) == 1 and first == second:
        raise ValueError(f"{method}: its number of parameters does not depend on the rank")
    return _closest(counts, budget)


def closest_num_bases(shapes: Shapes, budget: int) -> int:
    """NoLA's number of matrices, the same for A and B, that comes closest to `budget` parameters, as `closest_rank`.

    Args:
        shapes: (out, in) of every adapted layer, by name.
        budget: Number of trainable parameters to come close to, at least 1.
    """
    numbers = _around(budget / (2 * len(shapes)))
    counts = {k: count_trainable(shapes, "nola", 1, num_bases_a=k, num_bases_b=k) for k in numbers}
    return _closest(counts, budget)


def _around(exact: float) -> tuple[int, int]:
    """The whole numbers of at least 1 below and above."""
    return max(1, math.floor(exact)), max(1, math.floor(exact) + 1)


def _closest(counts: Mapping[int, int], budget: int) -> int:
    return min(counts, key=lambda value: (abs(counts[value] - budget), counts[value], value))


def count_model(name: str) -> Iterator[ParameterCount]:
    """The rows of the paper's tables for one of `ARCHITECTURES`; a CLIP model has those of its vision tower as well."""
    architecture = build_architecture(name)
    for scope, model in scopes(architecture).items():
        shapes = find_targets(model, architecture.targets)
        reference = count_trainable(shapes, *REFERENCE)
        frozen = sum(parameter.numel() for parameter in model.parameters())
        for method, rank in ROWS[name]:
            trainable = count_trainable(shapes, method, rank)
            percent = 100 * trainable / (frozen + trainable)
            yield ParameterCount(name, scope, method, rank, trainable, percent, trainable / reference)


def scopes(architecture: Architecture) -> dict[str, nn.Module]:
    """What can be adapted: the whole model ("full"), and the vision tower of a CLIP model ("vision")."""
    modules = {"full": architecture.model}
    if architecture.vision is not None:
        modules["vision"] = architecture.model.get_submodule(architecture.vision)
    return modules


def format_table(counts: Sequence[ParameterCount]) -> str:
    """The rows as aligned text with a header."""
    lines = [f"{'model':16} {'scope':7} {'method':9} {'rank':>5} {'trainable':>12} {'percent':>9} {'LoRA-32':>8}"]
    lines += [
        f"{c.model:16} {c.scope:7} {c.method:9} {c.rank:5} {c.trainable:12,} {c.percent:9.4f} {c.ratio:8.3f}"
        for c in counts
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table for the models named on the command line, or for all, and returns the exit code."""
    return run_command(_main, arguments, "the same command begins again")


def _main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m randlora_core.models.counts", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help=f"of {', '.join(ARCHITECTURES)}; default: all")
    names = parser.parse_args(arguments).models or list(ARCHITECTURES)
    print(format_table([row for name in names for row in count_model(name)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
