"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Stop:
    """Whether a signal asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    def request(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first asks to stop after the step; a second Ctrl-C stops at once.

        A second SIGTERM does not: clusters send several to a job whose time is up.
        """
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def stop_between_steps() -> Iterator[Stop]:
    """Turns SIGINT and SIGTERM into a request, since a step that is cut in half cannot be resumed to the bit."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.signal(number, stop.request) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
