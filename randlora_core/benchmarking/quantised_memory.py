"""Measures what RandLoRA needs on a 4-bit Llama-3 beside LoRA: `python -m randlora_core.benchmarking.quantised_memory`.

A training step of one and of two decoder blocks of Llama-3's widths is measured, at the paper's batch of 4 rows of 256
tokens. Their linear layers are in NF4 with quantised scales, all else and the products in bf16 (or as --dtype says),
adapters in fp32. The peak is carried on to Llama-3's 32 blocks as peak(1) + 31 (peak(2) - peak(1)); embeddings and the
output head are left out, which no method changes. It is measured with and without gradient checkpointing, of which the
paper's runs make use, and written to --out as CSV.

The goal: RandLoRA's peak, with dense bases and in groups, is at most 1.05 times that of LoRA with as many parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from randlora_core.adapters.quantization import missing_bitsandbytes, quantise_linear_layers
from randlora_core.benchmarking.cases import Case
from randlora_core.benchmarking.goals import Verdict
from randlora_core.benchmarking.measure import measure_memory
from randlora_core.benchmarking.memory import check_fits
from randlora_core.benchmarking.report import ResultsFile, check_out, hardware
from randlora_core.benchmarking.table10 import STACKS, Stack
from randlora_core.command_line import CommandParser, run_command
from randlora_core.errors import one_line
from randlora_core.experiment.loop.hardware import multiplies_bf16

METHODS = ("lora", "randlora", "randlora_blocks")
LIMIT = 1.05
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WAYS = {"without": (False,), "with": (True,), "both": (False, True)}
"""What --checkpointing accepts -> whether activations are computed again, for each measurement."""

DEFAULT_OUT = Path("results/benchmark")


class Checkpointed(nn.Sequential):
    """Blocks whose activations are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """The blocks' output, of x's shape."""
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def quantised_case(case: Case, dtype: torch.dtype, *, checkpointing: bool) -> Case:
    """The case with its linear layers in NF4; on the meta device they are plain ones, which have the same shapes.

    Args:
        case: Blocks in an nn.Sequential.
        dtype: Number format of everything else, of the input and of the products.
        checkpointing: Whether activations are computed again.
    """

    def build(device: torch.device) -> nn.Module:
        blocks = case.build(device).to(dtype)
        if device.type != "meta":
            quantise_linear_layers(blocks, dtype)
        blocks = Checkpointed(*blocks) if checkpointing else blocks
        return blocks.to(device).requires_grad_(False)

    def inputs(device: torch.device) -> Tensor:
        return case.inputs(device).detach().to(dtype).requires_grad_()

    half = dtype == torch.bfloat16  # as the training loop computes where it is told bf16
    return dataclasses.replace(case, build=build, inputs=inputs, half=half, memory_limit=LIMIT)


def measure_peaks(
    stack: Stack, dtype: torch.dtype, device: torch.device, *, checkpointing: bool
) -> list[dict[str, Any]]:
    """A row for each method: peaks in bytes of one and two blocks and of the model's depth, and their ratio to LoRA's.

    Raises:
        ValueError: A step needs more memory than is free.
    """
    cases = [
        quantised_case(stack.for_memory(blocks, half=False), dtype, checkpointing=checkpointing) for blocks in (1, 2)
    ]
    check_fits(cases[-1], METHODS, device, "free some, or measure on another machine")
    one, two = (measure_memory(case, METHODS, device=device) for case in cases)
    whole = {name: one[name][0] + (stack.depth - 1) * (two[name][0] - one[name][0]) for name in METHODS}
    return [
        {
            "model": f"{stack.model}, NF4",
            "checkpointing": checkpointing,
            "dtype": str(dtype).removeprefix("torch."),
            "tokens": cases[0].tokens,
            "method": name,
            "peak_bytes_1_block": one[name][0],
            "peak_bytes_2_blocks": two[name][0],
            f"peak_bytes_{stack.depth}_blocks_extrapolated": whole[name],
            "ratio_to_lora": round(whole[name] / whole["lora"], 4),
            "counter": one[name][1],
        }
        for name in METHODS
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line; None stands for that of the process.

    Returns:
        The exit code: 0 where the goal is met in all that was measured, else 1; 2 where it cannot be measured.
    """
    return run_command(_main, arguments, "what was measured before, if anything, is in the folder's *.part.csv")


def _main(arguments: Sequence[str]) -> int:
    parser = CommandParser(
        prog="python -m randlora_core.benchmarking.quantised_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: bfloat16 where the hardware multiplies it")
    parser.add_argument("--rows", type=int, help="rows of 256 tokens; the paper's 4 if not given")
    parser.add_argument("--checkpointing", choices=tuple(WAYS), default="both", help="what to measure; default both")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"folder for the CSV file; default {DEFAULT_OUT}")
    options = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler tells of each start and stop otherwise
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would warn of kernels that it has not
    _check(parser.error, options.device, options.rows)
    device = torch.device(options.device)
    dtype = DTYPES[options.dtype or ("bfloat16" if multiplies_bf16(device) else "float32")]
    stack = next(stack for stack in STACKS if stack.model == "Llama-3-8B")
    stack = dataclasses.replace(stack, batch=options.rows or stack.batch)
    table, found = ResultsFile(options.out / f"quantised_memory_{device.type}.csv"), []
    check_out(table, parser.error)
    print(hardware(device))
    for checkpointing in WAYS[options.checkpointing]:
        found += measure_peaks(stack, dtype, device, checkpointing=checkpointing)
        table.add(found[-len(METHODS) :], hardware(device))
        for row in found[-len(METHODS) :]:
            _print(row)
    table.finish()
    print(f"written: {table.path}")
    goals = [_verdict(row) for row in found if row["method"] != "lora"]
    print(*goals, sep="\n")
    return 0 if all(goal.met for goal in goals) else 1


def _check(refuse: Callable[[str], None], device: str, rows: int | None) -> None:
    """Refuses, in one line, what could not be measured."""
    if missing := missing_bitsandbytes():
        refuse(f"loading in 4 bits {missing}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        refuse(f"--device {device} cannot be used; accepted here: cpu{', cuda' * torch.cuda.is_available()}")
    if rows is not None and rows < 1:
        refuse(f"--rows {rows}; accepted: 1 or more")
    if device == "cuda":
        try:
            quantised = nn.Sequential(nn.Linear(64, 64, bias=False))
            quantise_linear_layers(quantised, torch.bfloat16)
            quantised.to(device)(torch.ones(1, 64, device=device, dtype=torch.bfloat16))
        except Exception as error:  # bitsandbytes says in many ways that it has no kernels for this GPU
            refuse(f"this bitsandbytes cannot quantise on {device}: {one_line(error)}")


def _print(row: dict[str, Any]) -> None:
    peaks = [f"{row[key] / 1e6:,.0f} MB" for key in row if key.startswith("peak_bytes")]
    how = "with checkpointing" if row["checkpointing"] else "without checkpointing"
    of_lora = f"{row['ratio_to_lora']:.3f} of LoRA"
    print(f"{row['method']} {how}: 1, 2, all blocks (extrapolated): {', '.join(peaks)}; {of_lora}", flush=True)


def _verdict(row: dict[str, Any]) -> Verdict:
    how = "with" if row["checkpointing"] else "without"
    goal = f"peak of {row['method']} / LoRA's on {row['model']}, {how} checkpointing"
    return Verdict(goal, row["ratio_to_lora"], LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
