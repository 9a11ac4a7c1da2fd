"""Prints measurements as tables, and keeps and reads them as CSV files."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from randlora_core.benchmarking.cases import Case
from randlora_core.benchmarking.goals import BLOCKS, OWN_METHODS, Verdict, verdicts
from randlora_core.benchmarking.measure import Timing
from randlora_core.benchmarking.methods import GROUPS
from randlora_core.files import atomic_file

BASELINES = ("peft_randlora", "lora", "full")


@dataclass(frozen=True)
class Result:
    """Holds a case and what was measured on it, by method."""

    case: Case
    timings: Mapping[str, Timing]

    @property
    def verdicts(self) -> list[Verdict]:
        """The goals that apply."""
        return verdicts({row["method"]: row for row in rows(self)})


def hardware(device: torch.device) -> str:
    """Describes the machine in one line: processor or GPU, threads, and the load while measuring."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}{load}"


def rows(result: Result) -> list[dict[str, Any]]:
    """Makes one flat row a method: times in milliseconds, ratios of rounds with their quartiles, bytes.

    `to_peft` is relative to PEFT's same method, `to_dense` of bases in groups to dense ones, the other ratios to
    `BASELINES`.
    """
    case, found = result.case, []
    for timing in result.timings.values():
        first, median, third = timing.quartiles()
        row: dict[str, Any] = {
            "case": case.name,
            "kind": case.kind,
            "format": case.format,
            "tokens": case.tokens,
            "tokens_per_side": round(case.tokens_per_side, 2),
            "method": timing.method,
            "trainable": timing.trainable,
            "rounds": len(timing.step_seconds),
            "step_ms": 1e3 * median,
            "step_ms_q1": 1e3 * first,
            "step_ms_q3": 1e3 * third,
            "optimiser_ms": 1e3 * sorted(timing.optimizer_seconds)[len(timing.optimizer_seconds) // 2],
        }
        for baseline in BASELINES:
            if baseline in result.timings:
                q1, q2, q3 = timing.ratio_to(result.timings[baseline])
                row |= {f"to_{baseline}": q2, f"to_{baseline}_q1": q1, f"to_{baseline}_q3": q3}
        if timing.method in OWN_METHODS and f"peft_{timing.method}" in result.timings:
            q1, q2, q3 = timing.ratio_to(result.timings[f"peft_{timing.method}"])
            row |= {"to_peft": q2, "to_peft_q1": q1, "to_peft_q3": q3}
        if "randlora" in result.timings and (timing.method == BLOCKS or GROUPS.get(timing.method, 1) > 1):
            q1, q2, q3 = timing.ratio_to(result.timings["randlora"])
            row |= {"to_dense": q2, "to_dense_q1": q1, "to_dense_q3": q3, "blocks_limit": case.blocks_limit}
        row |= {"peak_bytes": timing.peak_bytes, "memory_limit": case.memory_limit, "counter": timing.counter}
        found.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return found


def print_result(result: Result) -> None:
    """Prints the case as a table of methods, and its goals below."""
    from rich.console import Console
    from rich.table import Table

    case, found = result.case, rows(result)
    title = f"{case.name}: T = {case.tokens} = {case.tokens_per_side:.1f} d, {case.format}"
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    present = [name for name in (*BASELINES, "dense") if any(f"to_{name}" in row for row in found)]
    for heading in ("step ms (quartiles)", *(f"/ {name}" for name in present), "AdamW ms", "peak MB"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            f"{row['method']} ({row['trainable']:,})",
            f"{row['step_ms']:.1f} ({row['step_ms_q1']:.1f}-{row['step_ms_q3']:.1f})",
            *(f"{row[f'to_{name}']:.2f}" if f"to_{name}" in row else "-" for name in present),
            f"{row['optimiser_ms']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}" if row["peak_bytes"] else "-",
        )
    console = Console(width=120 if not os.isatty(1) else None)
    console.print(table)
    for verdict in result.verdicts:
        console.print(f"  {verdict}", highlight=False)
    counter = next(iter(result.timings.values())).counter
    console.print(f"  memory counter: {counter or '-'}\n", highlight=False)


class ResultsFile:
    """Writes a CSV file of rows with equal or missing keys while they are measured.

    Until `finish`, the rows stand in a file beside it, NAME.part.csv: a run that is stopped loses nothing, and replaces
    no results of a whole run. The folder must exist.

    Attributes:
        path: The file.
        part: NAME.part.csv; a file that is there already is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_suffix(".part.csv")
        self._rows: list[Mapping[str, Any]] = []

    def add(self, new: Sequence[Mapping[str, Any]], machine: str) -> None:
        """Keeps rows measured on `machine`, which becomes a column of each."""
        self._rows += [{**row, "hardware": machine} for row in new]
        fields = dict.fromkeys(key for row in self._rows for key in row if key != "hardware")
        with atomic_file(self.part) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*fields, "hardware"], lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(self._rows)

    def finish(self) -> list[Mapping[str, Any]]:
        """Puts the file in its place and returns all its rows."""
        self.part.replace(self.path)
        return self._rows


def check_out(table: ResultsFile, refuse: Callable[[str], None]) -> None:
    """Makes the folder of a results file, and refuses in one line what it could not be written to or would replace."""
    folder = table.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        refuse(f"--out {str(folder)!r} is no folder that files can be written to: {error.strerror}")
    for path in (table.path, table.part, table.path.with_suffix(".png")):
        if path.is_dir():
            refuse(f"{path} is a folder, where a file of this name is to be written")
    if table.part.exists():
        refuse(f"{table.part} is left from a run that was stopped; move or delete it, or choose another --out")


TEXT_COLUMNS = ("case", "kind", "format", "method", "counter", "hardware", "model", "baseline")
TEXT_COLUMNS += ("half", "train")
"""Columns of words and truth values in the files of `ResultsFile`; all others hold numbers."""

CASE_COLUMNS = ("case", "kind", "format", "tokens", "tokens_per_side", "method", "step_ms")
CASE_COLUMNS += ("peak_bytes", "memory_limit", "counter", "hardware")
"""Columns in which every row of `rows` has a value."""


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads the rows of a file of `ResultsFile`.

    Args:
        path: The file.
        columns: Columns in which every row must have a value.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is cut or malformed: the message names the file, the line and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it is no text") from None
    if not text.endswith("\n"):
        raise ValueError(f"{path}: {'its last line is cut' if text else 'it is empty'}")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    found = []
    try:
        if absent := [name for name in columns if name not in reader.fieldnames]:
            raise ValueError(f"it has no column {absent[0]!r}")
        for row in reader:
            _check_row(row, columns)
            found.append(row)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    if not found:
        raise ValueError(f"{path}: it has no rows")
    return found


def _check_row(row: dict[str | None, Any], columns: Sequence[str]) -> None:
    if None in row or None in row.values():
        raise ValueError("it has more or fewer values than there are columns")
    for name in columns:
        if not row[name]:
            raise ValueError(f"there is no {name!r}")
    for name, value in row.items():
        if name not in TEXT_COLUMNS and value:
            try:
                finite = math.isfinite(float(value))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f"{name!r} must be a number, got {value!r}")


def read_cases(path: Path) -> list[dict[str, dict[str, str]]]:
    """Reads the cases of a file of `rows`, each as method -> row, in the file's order.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is cut or malformed, or a case lacks randlora, which the others are compared with.
    """
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in read_rows(path, CASE_COLUMNS):
        found.setdefault((row["case"], row["tokens"]), {})[row["method"]] = row
    for (case, tokens), methods in found.items():
        if "randlora" not in methods:
            raise ValueError(f"{path}: {case} with {tokens} tokens has no row of randlora")
    return list(found.values())
