"""Measures step time and peak memory of every method: `python -m randlora_core.benchmark`.

    --quick       three shapes, under 3 minutes on two cores: ratios against PEFT, LoRA and full fine-tuning, the goals
    (nothing)     layers and blocks of the paper's models over T / d
    --models M    whole models with random weights, for example --models mini_clip clip_vit_b32
    --table10     percent of full fine-tuning (Llama-3: of LoRA) beside the paper's Table 10
    --groups      RandLoRA with bases in 1 to r groups, for one rank r (--rank), on blocks of vision towers
    --grid        times of RandLoRA's paths that the cost model is held against, in both number formats
    --profile     the operations of one step of a ViT-B block, by time
    --half        under bfloat16 autocast instead of in float32

A step is forward and backward; the optimizer is a column of its own, and part of the step whose memory is measured.
Methods are stepped in turn within one process, and a ratio is the median over rounds of two steps of the same round, so
that a change of the machine's load counts for both. Tables, CSV files and plots go to --out. A run that is stopped
leaves what it had measured in NAME.part.csv; the next run of that name asks for the file to be moved away first, so
that hours of measurements are not overwritten by mistake.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from randlora_core.benchmarking import against_groups, cases, grid, table10, whole_models
from randlora_core.benchmarking.cases import Case
from randlora_core.benchmarking.measure import Step, measure
from randlora_core.benchmarking.memory import check_fits
from randlora_core.benchmarking.methods import MEASURED_METHODS, apply_method
from randlora_core.benchmarking.plots import over_groups, over_tokens, plot
from randlora_core.benchmarking.report import Result, ResultsFile, check_out, hardware, print_result, rows
from randlora_core.command_line import INTERRUPTED, CommandParser, run_command
from randlora_core.experiment.loop.hardware import multiplies_bf16

DEFAULT_OUT = Path("results/benchmark")
DEFAULT_ROUNDS, DEFAULT_BATCH, DEFAULT_TOKENS = 11, 16, 8192
QUICK_METHODS = ("frozen", "full", "lora", "randlora", "randlora_blocks", "peft_lora", "peft_randlora")
PEFT_METHODS = tuple(name for name in MEASURED_METHODS if "peft" in name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for what cannot be measured, 130 where a signal stopped it.

    Args:
        arguments: The command line; None stands for that of the process.
    """
    return run_command(_main, arguments, "nothing was measured")


def _main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler tells of each start and stop otherwise
    ways = {"grid": _run_grid, "profile": _run_profile, "table10": _run_table10}
    run = next((way for option, way in ways.items() if getattr(options, option)), _run_cases)
    device = torch.device(options.device)
    try:
        if options.models or options.table10:
            _check_memory(options, device)
        run(options, device)
    except KeyboardInterrupt:
        print(f"stopped; what was measured before, if anything, is in {options.out}/*.part.csv", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m randlora_core.benchmark", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="three shapes, under 3 minutes on two cores")
    what.add_argument("--models", nargs="+", metavar="MODEL", help="whole models with random weights")
    what.add_argument("--table10", action="store_true", help="beside the paper's Table 10")
    what.add_argument(
        "--groups",
        nargs="*",
        type=_positive,
        metavar="G",
        help="step time against the number of groups; all if not given",
    )
    what.add_argument("--grid", action="store_true", help="RandLoRA's paths on a grid of layers")
    what.add_argument("--profile", action="store_true", help="operations of one step by time")
    parser.add_argument("--half", action="store_true", help="under bfloat16 autocast")
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(MEASURED_METHODS), metavar="METHOD", help=", ".join(MEASURED_METHODS)
    )
    parser.add_argument(
        "--rank", type=_positive, help=f"RandLoRA's rank for --groups; {against_groups.DEFAULT_RANK} if not given"
    )
    parser.add_argument("--batch", type=_positive, help=f"rows of a batch for --models; {DEFAULT_BATCH} if not given")
    parser.add_argument(
        "--tokens",
        type=_positive,
        help=f"tokens for --table10's step times, at most the paper's of each model; {DEFAULT_TOKENS} if not given",
    )
    parser.add_argument("--rounds", type=_positive, help=f"rounds at most; {DEFAULT_ROUNDS} if not given")
    parser.add_argument("--seconds", type=_seconds, help="no new round after this time on a case; 30, --quick 20")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help=f"folder for tables and plots; {DEFAULT_OUT} if not given")
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
    """Refuses an option that would be ignored, and a name, a device or files that are not as they must be.

    Options that were not given get their values here.
    """
    _check_effects(parser, options)
    for option in ("methods", "models", "groups"):
        names = getattr(options, option) or ()
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            parser.error(f"--{option} names {twice[0]} more than once")
    if options.groups is not None:
        options.rank, options.groups = against_groups.chosen(options.rank, options.groups, parser.error)
    if options.methods and "randlora" not in options.methods:
        parser.error("--methods needs randlora among them, which the others are compared with")
    for name in options.models or ():
        if name not in whole_models.KNOWN:
            parser.error(f"unknown model {name!r}; known: {', '.join(whole_models.KNOWN)}")
    if options.tokens and options.tokens > table10.MOST_TOKENS:
        parser.error(f"--tokens {options.tokens} is above the largest of the paper's batches, {table10.MOST_TOKENS}")
    if options.seconds is None:
        options.seconds = 20.0 if options.quick else 30.0
    options.rounds, options.out = options.rounds or DEFAULT_ROUNDS, options.out or DEFAULT_OUT
    try:
        torch.ones(1, device=options.device).item()
    except (RuntimeError, AssertionError) as error:
        parser.error(f"device {options.device!r} cannot be used: {str(error).splitlines()[0]}")
    if not options.profile:
        check_out(ResultsFile(_table_path(options)), parser.error)


def _check_effects(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.batch and not options.models:
        parser.error("--batch has no effect without --models")
    if options.rank and options.groups is None:
        parser.error("--rank has no effect without --groups")
    if options.tokens and not options.table10:
        parser.error("--tokens has no effect without --table10")
    if options.seconds is not None and (options.grid or options.profile):
        parser.error("--seconds has no effect on --grid and --profile")
    if options.half and options.grid:
        parser.error("--half has no effect on --grid, which measures both number formats")
    if options.methods and (options.grid or options.table10 or options.profile or options.groups is not None):
        parser.error("--methods has no effect on --groups, --grid, --table10 and --profile")
    if options.profile and options.rounds:
        parser.error("--rounds has no effect on --profile, which shows one step")
    if options.profile and options.out:
        parser.error("--out has no effect on --profile, which prints its tables")


def _check_memory(options: argparse.Namespace, device: torch.device) -> None:
    """Refuses a model that is larger than the memory that is free."""
    if options.table10:
        for stack in table10.STACKS:
            case = stack.for_memory(2, options.half)
            check_fits(case, table10.TABLE10_METHODS, device, "--table10 needs the paper's batch sizes")
        return
    chosen, methods = _chosen(options)
    for case in chosen:
        check_fits(case, options.methods or methods, device, "choose a smaller --batch or another model")


def _chosen(options: argparse.Namespace) -> tuple[Sequence[Case], Iterable[str]]:
    """Gives the cases, and the methods that are measured where --methods names none."""
    if options.quick:
        return cases.quick_cases(options.half), QUICK_METHODS
    if options.models:
        batch = options.batch or DEFAULT_BATCH
        return [whole_models.model_case(name, batch, half=options.half) for name in options.models], MEASURED_METHODS
    if options.groups:
        return against_groups.cases(options.rank, options.half), against_groups.methods(options.groups)
    return cases.standard_cases(options.half), MEASURED_METHODS


def _table_path(options: argparse.Namespace) -> Path:
    """Names the CSV file of the run, whose plot has the same name."""
    if options.grid:
        return options.out / f"grid_{torch.device(options.device).type}.csv"
    name = next((name for name in ("quick", "models", "table10", "groups") if getattr(options, name)), "shapes")
    return options.out / f"{name}{'_bfloat16' if options.half else ''}.csv"


def _run_cases(options: argparse.Namespace, device: torch.device) -> None:
    chosen, methods = _chosen(options)
    results, table = [], ResultsFile(_table_path(options))
    print(hardware(device))
    for case in chosen:
        on_case = [method for method in options.methods or methods if case.for_peft or method not in PEFT_METHODS]
        if left_out := [method for method in options.methods or () if method not in on_case]:
            print(f"{case.name}: without {', '.join(left_out)}, since PEFT cannot adapt its attn.in_proj")
        timings = measure(case, on_case, rounds=options.rounds, seconds=options.seconds, device=device)
        results.append(Result(case, {timing.method: timing for timing in timings}))
        print_result(results[-1])
        table.add(rows(results[-1]), hardware(device))
    table.finish()
    panels = over_groups(results) if options.groups else over_tokens(results)
    plot(table.path.with_suffix(".png"), panels, hardware(device))
    print(f"written: {table.path} and .png")


def _run_grid(options: argparse.Namespace, device: torch.device) -> None:
    table = ResultsFile(_table_path(options))
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
    picked, mean, worst = grid.judge(found, device.type)
    fast = sum(grid.auto_is_fastest(row) for row in found) / len(found)
    print(f"the cost model picks the faster path on {picked:.1%} of {len(found)} points; the picked path takes")
    print(f"{mean:.3f} of the faster one's time in the mean and {worst:.2f} at worst; the")
    print(f"mixture of paths is at least as fast as either on {fast:.1%}; written: {table.path}")


def _run_profile(options: argparse.Namespace, device: torch.device) -> None:
    case = cases.quick_cases(options.half)[0]
    print(f"{case.name}, T = {case.tokens}, {case.format}, {hardware(device)}")
    for method in ("randlora", "randlora_blocks", "lora", "full"):
        step = Step(case, apply_method(method, case, device), case.inputs(device))
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

    results = ResultsFile(_table_path(options))
    limits = {"rounds": options.rounds, "seconds": options.seconds, "tokens": options.tokens or DEFAULT_TOKENS}
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
    sys.exit(main())
