"""What all command lines of this repository share: a parser, errors in one line each, and exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from randlora_core.errors import near
from randlora_core.extras import needs_extra

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes: a run failed, bad input, stopped by a signal. 0: all is done."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others, which `run_command` prints in one line each.

    Every command has the option --traceback.

    Args:
        words: What the command takes beside options, for messages, such as "SETTING=VALUE".
        details: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *, words: Sequence[str] = (), **details: Any):
        super().__init__(**details)
        self.words = words
        self.add_argument("--traceback", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises the message as a ValueError; one on an unknown option says which there are."""
        _, is_unknown, unknown = message.partition("unrecognized arguments: ")
        if is_unknown:
            names = [[name for name in action.option_strings if name.startswith("--")] for action in self._actions]
            options = [long[0] for long in names if long]
            message += f"{near(unknown.split()[0], options)}; accepted: {', '.join([*self.words, *options])}"
        raise ValueError(message)


def run_command(work: Callable[[list[str]], int], arguments: Sequence[str] | None, hint: str) -> int:
    """Runs a command and turns whatever goes wrong into lines on standard error and an exit code.

    Args:
        work: From the command line to the exit code of a command that came to its end.
        arguments: The command line; None for the process's own.
        hint: What to do after an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with needs_extra("experiments"):
            return work(arguments)
    except KeyboardInterrupt:
        print(f"interrupted; {hint}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if "--traceback" in arguments:
            traceback.print_exc()
        for line in error_lines(error):
            print(f"error: {line}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, (ValueError, FileNotFoundError)) else FAILED
    finally:
        signal.signal(signal.SIGTERM, before)


def error_lines(error: Exception) -> list[str]:
    """An error's message, with its type where it is not a plain complaint about a value."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ValueError) and lines:
        return lines
    return [f"{type(error).__name__}: {' '.join(lines)}"]


def _interrupt(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt
