"""Step time and peak memory of every method: `python -m randlora_core.benchmark`.

    --quick       three shapes, under 3 minutes on two cores: ratios against PEFT, LoRA and full fine-tuning, the goals
    (nothing)     layers and blocks of the paper's models over T / d
    --models M    whole models with random weights, for example --models mini_clip clip_vit_b32
    --table10     percent of full fine-tuning (Llama-3: of LoRA) beside the paper's Table 10
    --grid        times of RandLoRA's paths that the cost model is held against, in both number formats
    --profile     the operations of one step of a ViT-B block, by time
    --half        under bfloat16 autocast instead of in float32

A step is forward and backward; the optimiser is a column of its own, and part of the step whose memory is measured.
Methods are stepped in turn within one process, and a ratio is the median over rounds of two steps of the same round, so
that a change of the machine's load counts for both. Tables, CSV files and plots go to --out; a run that is stopped
leaves what it had measured in NAME.part.csv.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from randlora_core.benchmarking import cases, grid, table10
from randlora_core.benchmarking.cases import Case
from randlora_core.benchmarking.measure import Step, measure
from randlora_core.benchmarking.methods import METHODS, make_subject
from randlora_core.benchmarking.report import Result, ResultsFile, hardware, plot, print_result, rows
from randlora_core.experiment.loop.hardware import multiplies_bf16

QUICK_METHODS = ("frozen", "full", "lora", "randlora", "peft_lora", "peft_randlora")
PEFT_METHODS = tuple(name for name in METHODS if "peft" in name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: The command line; None stands for that of the process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler tells of each start and stop otherwise
    ways = {"grid": _run_grid, "profile": _run_profile, "table10": _run_table10}
    run = next((way for option, way in ways.items() if getattr(options, option)), _run_cases)
    try:
        run(options, torch.device(options.device))
    except KeyboardInterrupt:
        parser.exit(130, f"stopped; what was measured before, if anything, is in {options.out}/*.part.csv\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m randlora_core.benchmark", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="three shapes, under 3 minutes on two cores")
    what.add_argument("--models", nargs="+", metavar="MODEL", help="whole models with random weights")
    what.add_argument("--table10", action="store_true", help="beside the paper's Table 10")
    what.add_argument("--grid", action="store_true", help="RandLoRA's paths on a grid of layers")
    what.add_argument("--profile", action="store_true", help="operations of one step by time")
    parser.add_argument("--half", action="store_true", help="under bfloat16 autocast")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--batch", type=_positive, help="rows of a batch for --models; 16 if not given")
    parser.add_argument("--tokens", type=_positive, help="tokens for the step times of --table10; 8192 if not given")
    parser.add_argument("--rounds", type=_positive, default=11, help="rounds at most")
    parser.add_argument("--seconds", type=_seconds, help="no new round after this time on a case; 30, --quick 20")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"), help="folder for tables and plots")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return value


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with code 2 where an option would be ignored, a name or the device is not there, or --out takes no files."""
    if options.batch and not options.models:
        parser.error("--batch has no effect without --models")
    if options.tokens and not options.table10:
        parser.error("--tokens has no effect without --table10")
    if options.seconds is not None and (options.grid or options.profile):
        parser.error("--seconds has no effect on --grid and --profile")
    if options.half and options.grid:
        parser.error("--half has no effect on --grid, which measures both number formats")
    if options.methods and (options.grid or options.table10 or options.profile):
        parser.error("--methods has no effect on --grid, --table10 and --profile")
    if options.methods and "randlora" not in options.methods:
        parser.error("--methods needs randlora among them, which the others are compared with")
    for name in options.models or ():
        if name not in cases.model_names():
            parser.error(f"unknown model {name!r}; known: {', '.join(cases.model_names())}")
    if options.seconds is None:
        options.seconds = 20.0 if options.quick else 30.0
    try:
        torch.ones(1, device=options.device).item()
    except (RuntimeError, AssertionError) as error:
        parser.error(f"device {options.device!r} cannot be used: {str(error).splitlines()[0]}")
    if options.profile:
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.out):
            pass
    except OSError as error:
        parser.error(f"--out {str(options.out)!r} is no folder that files can be written to: {error.strerror}")


def _chosen(options: argparse.Namespace) -> tuple[str, Sequence[Case], Sequence[str]]:
    """Name of the run, its cases, and its methods."""
    if options.quick:
        return "quick", cases.quick_cases(options.half), QUICK_METHODS
    if options.models:
        chosen = [cases.model_case(name, options.batch or 16, half=options.half) for name in options.models]
        return "models", chosen, tuple(METHODS)
    return "shapes", cases.standard_cases(options.half), tuple(METHODS)


def _file_name(name: str, options: argparse.Namespace) -> str:
    return f"{name}_bfloat16" if options.half else name


def _run_cases(options: argparse.Namespace, device: torch.device) -> None:
    kind, chosen, methods = _chosen(options)
    name, methods = _file_name(kind, options), options.methods or methods
    results, table = [], ResultsFile(options.out / f"{name}.csv")
    print(hardware(device))
    for case in chosen:
        on_case = [method for method in methods if case.for_peft or method not in PEFT_METHODS]
        timings = measure(case, on_case, rounds=options.rounds, seconds=options.seconds, device=device)
        results.append(Result(case, {timing.method: timing for timing in timings}))
        print_result(results[-1])
        table.add(rows(results[-1]), hardware(device))
    table.finish()
    plot(options.out / f"{name}.png", results, hardware(device))
    print(f"written: {table.path} and .png")


def _run_grid(options: argparse.Namespace, device: torch.device) -> None:
    table = ResultsFile(options.out / f"grid_{device.type}.csv")
    halves = (False, True) if multiplies_bf16(device) else (False,)
    if len(halves) == 1:
        print("float32 only: this hardware has no instructions for products of bfloat16 numbers")
    for point in grid.points(halves):
        row = grid.measure_point(point, options.rounds, device)
        table.add([row], hardware(device))
        mark = "" if grid.agrees(row, device.type) else f"   the model says {grid.prediction(point, device.type)}"
        times = ", ".join(f"{path} {row[f'{path}_ms']} ms" for path in grid.TIMED)
        print(f"{point}: {times}{mark}", flush=True)
    found = table.finish()
    share = sum(grid.agrees(row, device.type) for row in found) / len(found)
    fast = sum(grid.auto_is_fastest(row) for row in found) / len(found)
    print(f"the cost model picks the faster path on {share:.1%} of {len(found)} points, and its mixture of paths is at")
    print(f"least as fast as either on {fast:.1%}; written: {table.path}")


def _run_profile(options: argparse.Namespace, device: torch.device) -> None:
    case = cases.quick_cases(options.half)[0]
    print(f"{case.name}, T = {case.tokens}, {case.format}, {hardware(device)}")
    for method in ("randlora", "full"):
        step = Step(case, make_subject(method, case, device), case.inputs(device))
        step.forward_backward()
        step.clear()
        with torch.profiler.profile() as profile:
            step.forward_backward()
        total = f"self_{device.type}_time_total"
        print(f"\n{method}")
        print(
            profile.key_averages(group_by_input_shape=True).table(sort_by=total, row_limit=20, max_name_column_width=40)
        )


def _run_table10(options: argparse.Namespace, device: torch.device) -> None:
    from rich.console import Console
    from rich.table import Table

    results = ResultsFile(options.out / f"{_file_name('table10', options)}.csv")
    limits = {"rounds": options.rounds, "seconds": options.seconds, "tokens": options.tokens or 8192}
    for stack in table10.STACKS:
        measured = table10.measure_stack(stack, **limits, device=device, half=options.half)
        results.add(measured, hardware(device))
    found = results.finish()
    title = f"Percent, {found[0]['format']}, beside the paper's Table 10"
    table = Table(title=title, title_justify="left")
    for heading in ("model", "method", "of", "time", "paper", "memory", "paper"):
        table.add_column(heading, justify="left" if heading in ("model", "method", "of") else "right")
    for row in found:
        names = ("time_percent", "paper_time_percent", "memory_percent", "paper_memory_percent")
        values = ("-" if row[name] is None else f"{row[name]:.0f}" for name in names)
        table.add_row(row["model"], row["method"], row["baseline"], *values)
    Console().print(table)
    for verdict in table10.verdicts(found):
        print(f"  {verdict}")
    print(f"Memory: {found[0]['counter']}, from one and two blocks at the paper's batch, carried on to the depth.")
    print(f"written: {results.path}")


if __name__ == "__main__":
    main()
