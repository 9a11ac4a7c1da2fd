"""Times the paths on a grid of layers, to hold the cost model of `randlora_core.ops.cost` against."""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from randlora_core import ops
from randlora_core.ops import cost
from randlora_core.ops.cost import Problem

SIDES = ((384, 384), (768, 768), (768, 3072), (3072, 768), (1024, 1024), (256, 1024), (1024, 4096))
TOKENS_PER_SIDE = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
RANK = 8
PATHS = ("activation", "weight")
TIMED = (*PATHS, "auto")


@dataclass(frozen=True)
class Point:
    """Describes a layer, its input, and what is computed.

    Attributes:
        out_features: Size of the output.
        in_features: Size of the input.
        tokens: Rows of the input.
        half: Whether the products run in bfloat16.
        train: Forward and backward with all gradients; else forward alone without.
        groups: Number of groups that the bases are divided into; 1 for dense ones.
    """

    out_features: int
    in_features: int
    tokens: int
    half: bool
    train: bool
    groups: int = 1

    def problem(self, device_type: str) -> Problem:
        """Describes the point as the cost model takes it."""
        smaller = min(self.out_features, self.in_features)
        return Problem(
            tokens=self.tokens,
            out_features=self.out_features,
            in_features=self.in_features,
            inner=RANK * -(-smaller // RANK),
            dtype=torch.bfloat16 if self.half else torch.float32,
            device_type=device_type,
            may_sum=not self.half,
            input_grad=self.train,
            vector_grad=self.train,
            groups=self.groups,
        )


def points(halves: Sequence[bool] = (False, True), groups: Sequence[int] = (1, RANK)) -> Iterator[Point]:
    """Lists the grid's points in float32 (False), bfloat16 (True), or both, for dense bases (1), groups, or both."""
    for (out, in_), ratio in itertools.product(SIDES, TOKENS_PER_SIDE):
        tokens = int(ratio * min(out, in_))
        for half, train, number in itertools.product(halves, (True, False), groups):
            yield Point(out, in_, tokens, half, train, number)


def measure_point(point: Point, rounds: int, device: torch.device) -> dict[str, Any]:
    """Times steps by each path of `TIMED` in turn and gives the quartiles in milliseconds, the base layer included."""
    torch.manual_seed(0)
    larger, smaller = max(point.out_features, point.in_features), min(point.out_features, point.in_features)
    n = -(-smaller // RANK)
    dtype = torch.bfloat16 if point.half else torch.float32
    weight = torch.randn(point.out_features, point.in_features, device=device, dtype=dtype) / point.in_features**0.5
    lambda_, gamma = torch.randn(RANK, n, device=device), torch.randn(n, smaller, device=device)
    rows = RANK // point.groups
    a = torch.randn(rows, smaller, device=device, dtype=torch.bfloat16)
    b = torch.randn(larger, n, rows, device=device, dtype=torch.bfloat16)
    x = torch.randn(point.tokens, point.in_features, device=device, dtype=dtype)
    upstream = torch.randn(point.tokens, point.out_features, device=device, dtype=dtype)
    leaves = [tensor.requires_grad_(point.train) for tensor in (x, lambda_, gamma)]

    def step(path: str) -> float:
        begin = time.perf_counter()
        y = ops.randlora_linear(x, lambda_, gamma, a, b, 1e-3, base=lambda x: x, weight=lambda: weight, path=path)
        if point.train:
            torch.autograd.grad(y, leaves, upstream)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - begin)

    for path in TIMED:
        step(path)
    times = np.array([[step(path) for path in TIMED] for _ in range(rounds)])
    row: dict[str, Any] = {**vars(point)}
    for path, column in zip(TIMED, times.T, strict=True):
        first, median, third = np.percentile(column, (25, 50, 75))
        row |= {f"{path}_ms": round(median, 4), f"{path}_ms_q1": round(first, 4), f"{path}_ms_q3": round(third, 4)}
    return row


def prediction(point: Point, device_type: str) -> str:
    """Tells which of the two paths the cost model finds cheaper, each taken for the whole step."""
    problem = point.problem(device_type)
    costs = {path: min(cost.estimate(problem, paths) for paths in cost.allowed(problem, path)) for path in PATHS}
    return min(costs, key=costs.get)


def agrees(row: dict[str, Any], device_type: str) -> bool:
    """Whether the model picks the faster path, or one that is slower by less than the quartiles' distance."""
    return _is_fastest(prediction(_point(row), device_type), row)


def slowdown(row: dict[str, Any], device_type: str) -> float:
    """Divides the measured time of the path that the model picks by that of the faster one: 1 or more."""
    times = {path: float(row[f"{path}_ms"]) for path in PATHS}
    return times[prediction(_point(row), device_type)] / min(times.values())


def judge(rows: Sequence[dict[str, Any]], device_type: str) -> tuple[float, float, float]:
    """Gives the share of rows that `agrees` accepts, and the mean and the largest `slowdown`."""
    slowdowns = [slowdown(row, device_type) for row in rows]
    picked = sum(agrees(row, device_type) for row in rows) / len(rows)
    return picked, sum(slowdowns) / len(rows), max(slowdowns)


def auto_is_fastest(row: dict[str, Any]) -> bool:
    """Whether "auto", which may mix the paths, was as fast as the faster one, up to the quartiles' distance."""
    return _is_fastest("auto", row)


def _is_fastest(path: str, row: dict[str, Any]) -> bool:
    others = [other for other in PATHS if other != path]
    spread = max(float(row[f"{name}_ms_q3"]) - float(row[f"{name}_ms_q1"]) for name in (path, *others))
    return float(row[f"{path}_ms"]) <= min(float(row[f"{other}_ms"]) for other in others) + spread


def _point(row: dict[str, Any]) -> Point:
    sizes = (int(row[name]) for name in ("out_features", "in_features", "tokens"))
    half, train = (str(row[name]) == "True" for name in ("half", "train"))
    return Point(*sizes, half, train, int(row.get("groups", 1)))  # earlier files have dense bases only


def is_complete(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the rows are the whole grid, in the formats that they hold."""
    found = [_point(row) for row in rows]
    halves, groups = (sorted({getattr(point, name) for point in found}) for name in ("half", "groups"))
    return bool(found) and found == list(points(halves, groups))


def read_grid(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a grid's CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
