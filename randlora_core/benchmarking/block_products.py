"""Times bases in groups by torch and by Triton on a GPU: `python -m randlora_core.benchmarking.block_products`.

For the layers of `LAYERS`, whose bases are in as many groups as the rank, it times

- the five products that a training step by activations makes with blocks, by each of `WAYS`;
- whole steps, forward and backward, beside those of dense bases, LoRA with equal parameters and full fine-tuning.

Here Triton's kernels compute every product that they are asked for, of any size and format: the rule by which they are
used elsewhere, `randlora_core.ops.products.by_triton`, was made from these times. First, every product is compared with
one in float64, and nothing is timed if one is wrong. The medians are written to --out as blocks_cuda.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from randlora_core import ops
from randlora_core.benchmarking.cases import Case, layer_case
from randlora_core.benchmarking.goals import BLOCKS
from randlora_core.benchmarking.measure import Step, median_milliseconds
from randlora_core.benchmarking.methods import apply_method, equal_rank
from randlora_core.benchmarking.report import ResultsFile, check_out, hardware
from randlora_core.command_line import CommandParser, run_command
from randlora_core.experiment.loop.hardware import multiplies_bf16
from randlora_core.ops import products
from randlora_core.ops.blocks import b_blocks, scaled_a_blocks

LAYERS = ((3072, 768, 6), (768, 3072, 6), (768, 768, 6), (4096, 4096, 30))
"""Outputs, inputs, and RandLoRA's rank."""

TOKENS = (640, 3200, 12800)
FORMATS = ("float32", "bfloat16")
"""Number formats of the products that are timed; steps run in float32 and under bfloat16 autocast."""

LIMITS = {"float32": 2e-6, "bfloat16": 5e-3, "float16": 1e-3}
"""Number format -> the largest error of a product that is taken for rounding, relative to the product in float64."""

ROUNDS, SECONDS = 30, 1.0
"""Rounds at most for the functions that are timed together, and the time after which none is begun."""

DEFAULT_OUT = Path("results/benchmark")
WAYS = ("torch", "triton")


class Operands(NamedTuple):
    """What the products multiply; the letters are those of `randlora_core.ops.blocks`.

    Attributes:
        wide: Columns of the layer's larger side, (T, D).
        narrow: Columns of its smaller side, (T, d).
        inner: What is between the two factors, (k, T).
        m: The scaled A in blocks, (g, t, n, w).
        b: B transposed in blocks, (g, n t, 1, w).
    """

    wide: Tensor
    narrow: Tensor
    inner: Tensor
    m: Tensor
    b: Tensor


Product = Callable[[Operands], Tensor]

PRODUCTS: dict[str, Product] = {
    "into(wide, B)": lambda o: products.into(o.wide, o.b),
    "out_of(M)": lambda o: products.out_of(o.inner, o.m, o.narrow.shape[1]),
    "into(narrow, M)": lambda o: products.into(o.narrow, o.m),
    "out_of(B)": lambda o: products.out_of(o.inner, o.b, o.wide.shape[1]),
    "gradient": lambda o: products.gradient_of_scaled_a(o.inner, o.narrow, len(o.m), o.m.shape[2]),
}
"""The five products of a step by activations, which are timed."""

CHECKED: dict[str, Product] = PRODUCTS | {
    "out_of(M) with bias": lambda o: products.out_of(o.inner, o.m, o.narrow.shape[1], o.narrow[0]),
    "out_of(B) with bias": lambda o: products.out_of(o.inner, o.b, o.wide.shape[1], o.wide[0]),
}
"""Those, and two more that a layer with a bias makes."""

STEPS = {
    "randlora": ("randlora", "torch", "auto"),
    BLOCKS: (BLOCKS, "torch", "auto"),
    f"{BLOCKS} by Triton": (BLOCKS, "triton", "auto"),
    f"{BLOCKS} by activations": (BLOCKS, "torch", "activation"),
    f"{BLOCKS} by activations and Triton": (BLOCKS, "triton", "activation"),
    "lora": ("lora", "torch", "auto"),
    "full": ("full", "torch", "auto"),
}
"""Name in the file -> method of `methods.MEASURED_METHODS`, way of the products with blocks, and path of the step."""


@contextlib.contextmanager
def products_by(way: str) -> Iterator[None]:
    """Has all products with blocks computed by one of `WAYS`, whatever their size, format and device."""
    rule = products.by_triton
    products.by_triton = lambda *product: way == "triton"
    try:
        yield
    finally:
        products.by_triton = rule


def compute(product: Product, way: str, operands: Operands) -> Tensor:
    """Computes a product by one of `WAYS`."""
    with products_by(way):
        return product(operands)


def draw_operands(
    larger: int, smaller: int, rank: int, tokens: int, number_format: str, device: torch.device
) -> Operands:
    """Draws the operands of a layer with sides D = `larger` and d = `smaller` and with g = r groups."""
    num_bases = -(-smaller // rank)
    torch.manual_seed(0)
    draw = functools.partial(torch.randn, device=device)
    a = rank**0.5 * draw(1, smaller).sign()
    operands = Operands(
        wide=draw(tokens, larger),
        narrow=draw(tokens, smaller),
        inner=draw(num_bases * rank, tokens),
        m=scaled_a_blocks(draw(rank, num_bases), draw(num_bases, smaller), a, scale=1 / num_bases),
        b=b_blocks(draw(larger, num_bases), rank),
    )
    return Operands(*(tensor.to(getattr(torch, number_format)) for tensor in operands))


def largest_errors(device: torch.device) -> dict[tuple[str, str], float]:
    """Finds the largest error for each number format of `LIMITS` and each of `WAYS`, relative to float64.

    Raises:
        ValueError: A product is wrong: its error is above the limit, or no number.
    """
    errors = dict.fromkeys(itertools.product(LIMITS, WAYS), 0.0)
    for sides, number_format, tokens in itertools.product(_sides(), LIMITS, TOKENS):
        operands = draw_operands(*sides, tokens, number_format, device)
        exact = Operands(*(tensor.double() for tensor in operands))
        for name, product in CHECKED.items():
            expected = compute(product, "torch", exact)
            for way in WAYS:
                found = compute(product, way, operands).double()
                error = float((found - expected).norm() / expected.norm())
                if not error <= LIMITS[number_format]:
                    larger, smaller, _ = sides
                    of = f"{name} by {way}, {larger} x {smaller}, {tokens} tokens, {number_format}"
                    limit = f"at most {LIMITS[number_format]:.0e} is rounding"
                    raise ValueError(f"{of}: the error relative to float64 is {error:.1e}; {limit}")
                errors[number_format, way] = max(errors[number_format, way], error)
    return errors


def time_products(device: torch.device) -> Iterator[list[dict[str, Any]]]:
    """Times the products, and yields the rows of a pair of sides, a number format and a number of tokens at a time."""
    for (larger, smaller, rank), number_format, tokens in itertools.product(_sides(), FORMATS, TOKENS):
        operands = draw_operands(larger, smaller, rank, tokens, number_format, device)
        functions = {
            (name, way): functools.partial(compute, product, way, operands)
            for name, product in PRODUCTS.items()
            for way in WAYS
        }
        found = median_milliseconds(functions, rounds=ROUNDS, seconds=SECONDS, device=device)
        found |= {("all five", way): sum(found[name, way] for name in PRODUCTS) for way in WAYS}
        shared = _columns(larger, smaller, rank, None, tokens, number_format)
        yield [{"kind": kind, **shared, "method": way, "ms": round(ms, 4)} for (kind, way), ms in found.items()]


def time_steps(device: torch.device) -> Iterator[list[dict[str, Any]]]:
    """Times the steps, and yields the rows of a layer, a number format and a number of tokens at a time."""
    for (out, in_, rank), number_format, tokens in itertools.product(LAYERS, FORMATS, TOKENS):
        case = layer_case(out, in_, tokens, rank, half=number_format == "bfloat16")
        found = median_milliseconds(step_functions(case, device), rounds=ROUNDS, seconds=SECONDS, device=device)
        shared = _columns(out, in_, rank, equal_rank(case), tokens, case.format)
        yield [{"kind": "step", **shared, "method": name, "ms": round(ms, 4)} for name, ms in found.items()]


def step_functions(case: Case, device: torch.device) -> dict[str, Callable[[], None]]:
    """Makes a function for each of `STEPS` that runs forward and backward and lets go of the gradients."""
    inputs, base = case.inputs(device), case.build(device)
    methods = dict.fromkeys(method for method, _, _ in STEPS.values())
    steps = {method: Step(case, apply_method(method, case, device, base), inputs) for method in methods}

    def run(step: Step, way: str, path: str) -> None:
        with products_by(way), ops.force_path(path):
            step.forward_backward()
        step.clear()

    return {name: functools.partial(run, steps[method], way, path) for name, (method, way, path) in STEPS.items()}


def measure_all(table: ResultsFile, machine: str, device: torch.device) -> None:
    """Checks the products, times them and the steps, and writes the rows.

    Raises:
        ValueError: A product is wrong; there is no file then.
    """
    print("products against float64; the first time, Triton compiles its kernels for this", flush=True)
    errors = [f"{number_format} {way} {error:.1e}" for (number_format, way), error in largest_errors(device).items()]
    print(f"largest relative errors: {', '.join(errors)}", flush=True)
    for rows in itertools.chain(time_products(device), time_steps(device)):
        table.add(rows, machine)
        _print(rows)
    table.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line; None stands for that of the process.

    Returns:
        The exit code: 0, 1 where a product is wrong, 2 where it cannot be measured.
    """
    return run_command(_main, arguments, "what was measured before, if anything, is in the folder's *.part.csv")


def _main(arguments: Sequence[str]) -> int:
    parser = CommandParser(
        prog="python -m randlora_core.benchmarking.block_products",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"folder for the CSV file; default {DEFAULT_OUT}")
    options = parser.parse_args(arguments)
    device = torch.device("cuda")
    if not torch.cuda.is_available() or not multiplies_bf16(device):
        parser.error("this needs a GPU: a CUDA device that multiplies bfloat16 numbers")
    if importlib.util.find_spec("triton") is None:
        parser.error("this needs the package triton, which is not installed")
    import triton

    table, machine = ResultsFile(options.out / "blocks_cuda.csv"), f"{hardware(device)}, triton {triton.__version__}"
    check_out(table, parser.error)
    print(machine)
    try:
        measure_all(table, machine, device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {table.path}")
    return 0


def _sides() -> list[tuple[int, int, int]]:
    """Gives the sides D and d and the ranks of `LAYERS`, each once: a layer and its transpose have equal products."""
    return list(dict.fromkeys((max(out, in_), min(out, in_), rank) for out, in_, rank in LAYERS))


def _columns(
    out: int, in_: int, rank: int, lora_rank: int | None, tokens: int, number_format: str
) -> dict[str, int | str | None]:
    sizes = {"out_features": out, "in_features": in_, "rank": rank, "lora_rank": lora_rank, "tokens": tokens}
    return {**sizes, "format": number_format}


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [row for row in rows if row["kind"] in ("all five", "step")]
    first = shown[0]
    what = f"{first['kind']}, {first['in_features']} -> {first['out_features']}, {first['tokens']} tokens"
    times = ", ".join(f"{row['method']} {row['ms']}" for row in shown)
    print(f"{what}, {first['format']}, ms: {times}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
