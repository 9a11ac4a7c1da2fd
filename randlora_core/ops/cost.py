"""Estimates the work of each way to compute an adapted layer, and chooses the cheapest.

A training step has three parts, and each can go by the activations or by the weight (D >= d are the layer's sides,
T tokens, k = n*r, about d; products in multiply-adds):

    part              by activations                       by the weight
    output            T k (D + d)                          D d k, and T D d unless W0 + update is summed first
    input gradient    T k (D + d)                          D d k, and T D d unless W0 + update is summed first
    vector gradient   T k (D + d), of which T k D is       T D d + D d k
                      there already where dY B was made for
                      the input gradient (out >= in), or
                      x B for the output (out < in)

With bases in g groups every product that has k in it costs 1 / g of that.

W0 + update may be summed first only where the product itself runs in that precision (`randlora_core.ops.linear`).
Beside products the estimate counts elements written and sorted by group, and the launches of a weight that is summed
group by group, weighted by what each costs in multiply-adds on the device.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch

PATHS = ("auto", "activation", "weight", "two_products")
"""What can be asked for. "auto" takes the cheapest combination; "activation" computes all parts by activations;
"weight" computes all by the weight, summed where that is allowed and by two products otherwise; "two_products" computes
by the weight, never summed."""

HALF = (torch.bfloat16, torch.float16)

ACTIVATION, SUMMED, TWO_PRODUCTS, WEIGHT = "activation", "summed", "two_products", "weight"


@dataclass(frozen=True)
class Rates:
    """Says how long other work takes, in the multiply-adds of a product over tokens that take as long.

    Args:
        element: Writing one element.
        forming: A multiply-add in the product B M.
        sorting: Moving one element to or from its group's place.
        launch: Starting one of the products, one for each group, that add a summed weight's update.
    """

    element: float
    forming: float
    sorting: float
    launch: float


RATES: dict[tuple[str, bool], Rates] = {
    ("cpu", False): Rates(element=40.0, forming=1.2, sorting=12.0, launch=0.0),
    ("cpu", True): Rates(element=400.0, forming=2.0, sorting=12.0, launch=0.0),
    ("cuda", False): Rates(element=50.0, forming=1.1, sorting=300.0, launch=1e9),
    ("cuda", True): Rates(element=1200.0, forming=1.5, sorting=3000.0, launch=0.0),
}
"""(device type, half precision) -> its rates.

CPU: element and forming are fitted to the grid of `python -m randlora_core.benchmark --grid`; sorting was measured with
AVX2 in float32, where a copy of this kind takes about 0.4 ns an element.

CUDA: from one NVIDIA H200. In float32 all are fitted to its grid; the launch is about 30 us. In 16 bits launches hide
the paths' difference nearly everywhere on that grid, so that it says little of the rates. Element and forming are from
the ratio of peak rates to bandwidth instead, and sorting is from products timed alone; nothing is summed there.
"""


@dataclass(frozen=True)
class Problem:
    """Describes a layer and a step on it, as far as the choice of paths depends on them.

    Args:
        tokens: Rows of the input, T.
        out_features: Size of the output.
        in_features: Size of the input.
        inner: Columns of B, n*r.
        dtype: Number format of the products.
        device_type: As `torch.device.type`.
        may_sum: Whether W0 + update may be summed.
        input_grad: Whether the input needs a gradient.
        vector_grad: Whether lambda or gamma need one.
        groups: Number of groups g that the bases are divided into.
    """

    tokens: int
    out_features: int
    in_features: int
    inner: int
    dtype: torch.dtype
    device_type: str
    may_sum: bool
    input_grad: bool
    vector_grad: bool
    groups: int = 1

    @property
    def half(self) -> bool:
        """Whether the products take 16-bit factors."""
        return self.dtype in HALF

    @property
    def transposed(self) -> bool:
        """Whether the output is the layer's smaller side."""
        return self.out_features < self.in_features


@dataclass(frozen=True)
class StepPaths:
    """Says by which path each part of a step is computed.

    Args:
        output: "activation", "summed" or "two_products".
        input_grad: The same choice for the input's gradient.
        vector_grad: "activation" or "weight".
    """

    output: str
    input_grad: str
    vector_grad: str


def choose(problem: Problem, path: str = "auto") -> StepPaths:
    """Finds the cheapest combination that `path` allows.

    The parts are weighed together, so that the output may take another path where no gradient is wanted. Training and
    evaluation therefore agree up to rounding only.
    """
    return _choose(problem, path) if torch.compiler.is_compiling() else _remembered_choice(problem, path)


def _choose(problem: Problem, path: str) -> StepPaths:
    best, *others = allowed(problem, path)
    least = estimate(problem, best)
    for paths in others:  # not min() with a key: torch.compile of PyTorch 2.11 cannot follow it
        work = estimate(problem, paths)
        if work < least:
            best, least = paths, work
    return best


_remembered_choice = functools.lru_cache(maxsize=4096)(_choose)


def allowed(problem: Problem, path: str = "auto") -> list[StepPaths]:
    """Lists the combinations that `path`, one of `PATHS`, allows; there is at least one."""
    by_weight = SUMMED if problem.may_sum and path != "two_products" else TWO_PRODUCTS
    # M itself can lie below float16's range, where the update does not: by activations only if told to.
    if path == "auto" and problem.dtype == torch.float16:
        path = "weight"
    if path == "activation":
        return [StepPaths(ACTIVATION, ACTIVATION, ACTIVATION)]
    if path in ("weight", "two_products"):
        return [StepPaths(by_weight, by_weight, WEIGHT)]
    ways = (ACTIVATION, by_weight)
    return [StepPaths(*parts) for parts in itertools.product(ways, ways, (ACTIVATION, WEIGHT))]


def estimate(problem: Problem, paths: StepPaths) -> float:
    """Estimates the work of a combination, beyond the frozen layer's own, in multiply-adds of a product over tokens."""
    forward = _forming(problem, paths.output) + _product(problem, paths.output, problem.out_features)
    backward = 0.0
    if problem.input_grad:
        backward += _forming(problem, paths.input_grad)
        backward += _product(problem, paths.input_grad, problem.in_features)
    if problem.vector_grad:
        way = paths.output if problem.transposed else paths.input_grad if problem.input_grad else None
        backward += _vector_gradient(problem, paths.vector_grad, has_product_with_b=way == ACTIVATION)
    return forward + backward


def _sides(problem: Problem) -> tuple[int, int]:
    sides = (problem.out_features, problem.in_features)
    return max(sides), min(sides)


def _rates(problem: Problem) -> Rates:
    return RATES[problem.device_type if problem.device_type == "cpu" else "cuda", problem.half]


def _forming(problem: Problem, way: str) -> float:
    """Estimates the work of forming M, and of the update from it unless `way` is by activations."""
    larger, smaller = _sides(problem)
    rates = _rates(problem)
    m, b = 3 * problem.inner * smaller, larger * problem.inner / problem.groups
    if way == ACTIVATION:
        return rates.element * (m / problem.groups + b)
    launches = rates.launch * problem.groups if way == SUMMED and problem.groups > 1 else 0.0
    product = rates.forming * larger * smaller * problem.inner / problem.groups
    return rates.element * (m + b + larger * smaller) + product + launches


def _product(problem: Problem, way: str, columns: int) -> float:
    """Estimates the work of multiplying the tokens by the update, with a result (T, columns)."""
    larger, smaller = _sides(problem)
    tokens, rates = problem.tokens, _rates(problem)
    if way == SUMMED:
        return 0.0
    if way == TWO_PRODUCTS:
        return tokens * larger * smaller + rates.element * tokens * columns
    products = tokens * problem.inner * (larger + smaller) / problem.groups
    sorting = rates.sorting * tokens * (larger + smaller) if problem.groups > 1 else 0.0
    return products + rates.element * tokens * (columns + problem.inner) + sorting


def _vector_gradient(problem: Problem, way: str, *, has_product_with_b: bool) -> float:
    larger, smaller = _sides(problem)
    tokens, inner = problem.tokens, problem.inner
    rates = _rates(problem)
    reduction = rates.element * 3 * inner * smaller
    if way == WEIGHT:
        formed = rates.forming * larger * smaller * inner / problem.groups
        return reduction + tokens * larger * smaller + formed + rates.element * larger * smaller
    sorting = rates.sorting * tokens if problem.groups > 1 else 0.0
    by_b = 0.0 if has_product_with_b else tokens * inner * (larger / problem.groups + rates.element) + sorting * larger
    return reduction / problem.groups + tokens * inner * smaller / problem.groups + sorting * smaller + by_b
