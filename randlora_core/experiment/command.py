"""The command line of one run: overrides in, a record out, one line and an exit code for whatever went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from randlora_core.experiment.compose import CONFIGS, choices

TRACEBACK_VARIABLE = "RANDLORA_TRACEBACK"
"""Set to 1 in the environment to see the whole traceback of an error."""
INTERRUPTED = 130
PROGRESS_LINES = 10


class Planned(Protocol):
    """What the command needs of a planned run."""

    run_id: str
    path: Any
    finished: dict[str, Any] | None


def run_command(
    name: str,
    plan: Callable[[Sequence[str]], Planned],
    execute: Callable[..., dict[str, Any]],
    arguments: Sequence[str],
) -> int:
    """Plans and executes one run.

    Args:
        name: The experiment, also of its entry in `configs/`.
        plan: From overrides to a checked and identified run.
        execute: From that and a function that takes progress events to the record.
        arguments: The command line; `--help` lists the settings.

    Returns:
        0; 1 after an error, told in one line on stderr; 130 after an interruption.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(describe(name))
        return 0
    try:
        planned = plan(arguments)
        record = planned.finished
        if record is not None:
            print(f"run {planned.run_id} has finished before; delete {planned.path} to do it again")
        else:
            print(f"run {planned.run_id}", flush=True)
            record = execute(planned, show_progress)
        print(summary(record, str(planned.path)))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last saved state, if there is one", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def one_line(error: Exception) -> str:
    """An error's message on one line, with its type where it is not a plain complaint about a value."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}"


def describe(name: str) -> str:
    """The settings of an experiment, as its YAML file explains them, and the names in each group."""
    settings = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    groups = [path.name for path in sorted(CONFIGS.iterdir()) if f"  - {path.name}: " in settings]
    listed = "\n".join(f"  {group}={'|'.join(choices(group))}" for group in groups)
    return f"usage: python -m {name}.train [SETTING=VALUE ...]\n\nGroups:\n{listed}\n\nSettings:\n{settings}"


def show_progress(event: dict[str, Any]) -> None:
    """Prints about ten lines a run."""
    step, steps = event["step"], event["steps"]
    if event["phase"] == "train" and (step == steps or step % max(1, steps // PROGRESS_LINES) == 0):
        speed = event["images_per_second"]
        rate = f"  {speed:.0f} images/s" if speed else ""
        print(f"step {step}/{steps}  loss {event['loss']:.4f}{rate}", flush=True)


def summary(record: dict[str, Any], path: str) -> str:
    """The result in one line, and where the rest is."""
    result, label = record["result"], record["config"]["adapter"]["label"]
    scores = {"test": result["test_accuracy"], "validation": result["validation_accuracy"]}
    shown = ", ".join(f"{split} {100 * score:.2f} %" for split, score in scores.items() if score is not None)
    trainable, seconds = record["parameters"]["trainable"], record["time"]["total_seconds"]
    return f"{label}: accuracy {shown}; {trainable:,} trainable parameters; {seconds:.1f} s\nrecord: {path}"
