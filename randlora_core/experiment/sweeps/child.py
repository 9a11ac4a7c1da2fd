"""What happens in the process of a run, whoever started it: its output, its interruption, its last message."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from randlora_core.experiment.records.ledger import describe_error

Message = tuple[str, Any]
"""("progress", event), or one of the final ones: ("result", value), ("error", {"type", "message", "traceback"}),
("interrupted", why or None) and, where a process ended without a word, told by its watcher, ("crash", description)."""


def attempt(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    on_progress: Callable[[dict[str, Any]], None],
    log: Path | None,
) -> Message:
    """Calls `function(*arguments, on_progress=on_progress)` and gives the final message on how that ended.

    SIGTERM raises KeyboardInterrupt in the function, once.

    Args:
        function: What the process is for.
        arguments: Its positional arguments.
        on_progress: Takes its progress events.
        log: File that takes what the process prints, replaced if present; None leaves its output alone.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if log is not None:
        _redirect_output(log)
    try:
        return "result", function(*arguments, on_progress=on_progress)
    except KeyboardInterrupt:
        return "interrupted", None
    except BaseException as error:  # whatever ended it must be told, SystemExit included
        if log is not None:
            traceback.print_exc()
        return "error", describe_error(error)


def last_words(log: Path | None) -> str:
    """The last line that a process printed to its log, as an addition to the description of its end; "" without one."""
    if log is None or not log.exists():
        return ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"; last line printed: {lines[-1][:300]}" if lines else ""


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # saving must not be interrupted a second time
    raise KeyboardInterrupt


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
