"""Writes the tables of time and memory in README.md and docs/performance.md from the committed results.

    python -m randlora_core.benchmarking.pages            rewrite the tables
    python -m randlora_core.benchmarking.pages --check    exit code 1 where a table differs from its file, 2 where a
                                                          file is missing, cut or malformed

A table stands between `<!-- measured NAME -->` and `<!-- end of measured NAME -->`, NAME a file of docs/performance.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from randlora_core.benchmarking import grid, table10
from randlora_core.benchmarking.goals import BLOCKS, OWN_METHODS, verdicts
from randlora_core.benchmarking.methods import GROUPS
from randlora_core.benchmarking.report import read_cases, read_rows
from randlora_core.experiment.reports.formats import TextTable, to_markdown
from randlora_core.experiment.reports.pages import filled, write_or_check

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
RESULTS = ROOT / "docs" / "performance"

CASE_HEADINGS = ("case", "T / d", "RandLoRA / PEFT's", "/ full", "/ LoRA", "memory / LoRA", "others / PEFT's")
BLOCKS_HEADINGS = ("blocks / LoRA", "/ dense", "/ full", "memory / LoRA")
GROUPS_HEADINGS = ("case", "T / d", "groups", "step ms", "quartiles", "/ LoRA", "/ dense", "/ full", "memory / LoRA")
TRITON_HEADINGS = ("layer", "tokens", "format", "dense", "blocks", "by Triton", "LoRA", "full")
TRITON_HEADINGS += ("products by torch", "by Triton", "ratio")
TRITON_METHODS = ("randlora", BLOCKS, f"{BLOCKS} by Triton", "lora", "full")
TRITON_COLUMNS = ("kind", "out_features", "in_features", "rank", "tokens", "format", "method", "ms", "hardware")
GRID_FORMATS = {"float32": "False", "bfloat16": "True"}
GRID_COLUMNS = ("out_features", "in_features", "tokens", "half", "train", "groups", "hardware")
GRID_COLUMNS += tuple(f"{path}_ms{part}" for path in grid.TIMED for part in ("", "_q1", "_q3"))
GRID_HEADINGS = ("format", "points", "faster way picked", "picked / faster, mean", "at worst")
PERCENT_HEADINGS = ("model", "method", "of", "time %", "quartiles", "paper", "memory %", "paper")


def updated(text: str) -> str:
    """Makes every table of a page's text anew from its file.

    Raises:
        FileNotFoundError: A block names a file that is not there.
        ValueError: There is no block at all, or a file is cut or malformed.
    """
    return filled(text, "measured", lambda name: table(RESULTS / f"{name}.csv"))


def table(path: Path) -> str:
    """Makes the Markdown table of one results file, with a line on the hardware and the goals."""
    if path.stem.startswith("table10"):
        return _percent_table(path)
    if path.stem.startswith("grid"):
        return _grid_table(path)
    if path.stem.startswith("blocks"):
        return _triton_table(path)
    cases = read_cases(path)
    if path.stem.startswith("groups"):
        return _groups_table(cases)
    with_blocks = any(BLOCKS in rows for rows in cases)  # earlier files have none
    headings = (*CASE_HEADINGS, *(BLOCKS_HEADINGS if with_blocks else ()))
    cells = [[*_case_cells(rows), *(_blocks_cells(rows) if with_blocks else ())] for rows in cases]
    lines = _markdown(headings, cells)
    judged = [verdict for rows in cases for verdict in verdicts(rows)]
    met = sum(verdict.met for verdict in judged)
    ours = cases[0]["randlora"]
    machine = _machine(rows["randlora"]["hardware"] for rows in cases)
    note = f"{ours['format']}; {machine}; memory: {ours['counter']}. Goals met: {met} of {len(judged)}"
    return f"{lines}\n{note}; behind a value that misses its goal stands the goal.\n"


def _case_cells(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    ours = rows["randlora"]
    missed = {verdict.goal: f" (> {verdict.limit:.2f})" for verdict in verdicts(rows) if not verdict.met}
    memory = f"{int(ours['peak_bytes']) / int(rows['lora']['peak_bytes']):.2f}" if "lora" in rows else "-"
    others = [
        f"{name} {float(rows[method]['to_peft']):.2f}" + _limit(f"{name}'s", missed)
        for method, name in OWN_METHODS.items()
        if method != "randlora" and method in rows and rows[method].get("to_peft")
    ]
    if accelerated := _ratio(rows.get("accelerated_peft_randlora", {}), "to_peft_randlora").strip("-"):
        others.append(f"accelerated {accelerated}")
    return [
        f"{ours['case']}, {int(ours['tokens']):,} tokens",
        f"{float(ours['tokens_per_side']):.1f}",
        _ratio(ours, "to_peft") + _limit("(a)", missed),
        _ratio(ours, "to_full") + _limit("(b)", missed),
        _ratio(ours, "to_lora"),
        memory + _limit("(c)", missed),
        ", ".join(others) or "-",
    ]


def _blocks_cells(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    row = rows.get(BLOCKS, {})
    missed = {verdict.goal: f" (> {verdict.limit:.2f})" for verdict in verdicts(rows) if not verdict.met}
    memory = f"{int(row['peak_bytes']) / int(rows['lora']['peak_bytes']):.2f}" if row and "lora" in rows else "-"
    return [
        _ratio(row, "to_lora") + _limit("blocks (a)", missed),
        _ratio(row, "to_dense") + _limit("blocks (b)", missed),
        _ratio(row, "to_full") + _limit("blocks (c)", missed),
        memory + _limit("blocks (d)", missed),
    ]


def _ratio(row: Mapping[str, str], column: str) -> str:
    return f"{float(row[column]):.2f}" if row.get(column) else "-"


def _limit(goal: str, missed: Mapping[str, str]) -> str:
    return next((limit for name, limit in missed.items() if name.startswith(goal)), "")


def _groups_table(cases: Sequence[Mapping[str, Mapping[str, str]]]) -> str:
    cells = [
        [
            f"{row['case']}, {int(row['tokens']):,} tokens",
            f"{float(row['tokens_per_side']):.1f}",
            str(GROUPS[method]),
            f"{float(row['step_ms']):.1f}",
            f"{float(row['step_ms_q1']):.1f}-{float(row['step_ms_q3']):.1f}",
            _ratio(row, "to_lora"),
            _ratio(row, "to_dense"),
            _ratio(row, "to_full"),
            f"{int(row['peak_bytes']) / int(rows['lora']['peak_bytes']):.2f}",
        ]
        for rows in cases
        for method, row in rows.items()
        if method in GROUPS
    ]
    ours = cases[0]["randlora"]
    machine = _machine(rows["randlora"]["hardware"] for rows in cases)
    return f"{_markdown(GROUPS_HEADINGS, cells)}\n{ours['format']}; {machine}; memory: {ours['counter']}.\n"


def _grid_table(path: Path) -> str:
    """Makes the table of the ways that the cost model picks now, each for a whole step, beside the faster ones."""
    device_type, rows = path.stem.removeprefix("grid_"), read_rows(path, GRID_COLUMNS)
    by_format = {name: [row for row in rows if row["half"] == half] for name, half in GRID_FORMATS.items()}
    cells = []
    for name, chosen in {"all": rows, **by_format}.items():
        if not chosen:  # without bfloat16 on a machine that has no instructions for it
            continue
        picked, mean, worst = grid.judge(chosen, device_type)
        cells.append((name, str(len(chosen)), f"{picked:.1%}", f"{mean:.3f}", f"{worst:.2f}"))
    return f"{_markdown(GRID_HEADINGS, cells)}\n{_machine(row['hardware'] for row in rows)}.\n"


def _triton_table(path: Path) -> str:
    """Makes the table of steps of layers with bases in groups, and of their five products by torch and by Triton."""
    rows = read_rows(path, TRITON_COLUMNS)
    times: dict[tuple[str, ...], dict[str, float]] = {}  # of a kind, sides, tokens and format, by method
    for row in rows:
        key = (row["kind"], row["out_features"], row["in_features"], row["tokens"], row["format"])
        times.setdefault(key, {})[row["method"]] = float(row["ms"])
    cells = []
    for (kind, out, in_, tokens, number_format), step in times.items():
        if kind != "step":
            continue
        larger, smaller = sorted((out, in_), key=int, reverse=True)
        try:
            products = times["all five", larger, smaller, tokens, number_format.removesuffix(" autocast")]
            milliseconds = (*(step[method] for method in TRITON_METHODS), products["torch"], products["triton"])
        except KeyError as absent:
            raise ValueError(f"{path}: layer {in_} -> {out}, {tokens} tokens, {number_format}: no {absent}") from None
        layer = (f"{in_} -> {out}", f"{int(tokens):,}", number_format)
        ratio = products["triton"] / products["torch"]
        cells.append((*layer, *(f"{time:.2f}" for time in milliseconds), f"{ratio:.2f}"))
    return f"{_markdown(TRITON_HEADINGS, cells)}\nms, medians; {_machine(row['hardware'] for row in rows)}.\n"


def _percent_table(path: Path) -> str:
    rows = read_rows(path, table10.COLUMNS)
    table10.check_complete(path, rows)
    cells = [
        [
            row["model"],
            row["method"],
            row["baseline"],
            f"{float(row['time_percent']):.0f}",
            f"{float(row['time_percent_q1']):.0f}-{float(row['time_percent_q3']):.0f}",
            row["paper_time_percent"] or "-",
            f"{float(row['memory_percent']):.0f}",
            row["paper_memory_percent"] or "-",
        ]
        for row in rows
    ]
    goals = "".join(f"- {verdict}\n" for verdict in table10.verdicts(rows))
    note = f"{rows[0]['format']}; {_machine(row['hardware'] for row in rows)}; {rows[0]['counter']}"
    return f"{_markdown(PERCENT_HEADINGS, cells)}\n{note}.\n\n{goals}"


def _machine(lines: Iterable[str]) -> str:
    """Names the machine of all rows, with the range of its load."""
    parts = [line.partition(", load ") for line in lines]
    loads = sorted({float(load) for *_, load in parts if load})
    machine = " and ".join(dict.fromkeys(name for name, *_ in parts))
    return f"{machine}, load {loads[0]} to {loads[-1]}" if loads else machine


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return to_markdown(TextTable("", tuple(columns), tuple(tuple(row) for row in rows)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    try:
        return write_or_check(PAGES, updated, "python -m randlora_core.benchmarking.pages", arguments)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
