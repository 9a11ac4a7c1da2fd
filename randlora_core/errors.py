"""Messages of errors that other libraries raise, as parts of this library's own."""

from __future__ import annotations

WIDTH = 400
"""Characters of a message that are shown at most; some libraries' explanations fill a screen."""
CUT = " [...]"
"""What stands for the rest of a longer one."""


def one_line(error: BaseException) -> str:
    """An error's message on one line, its end left out where it is long, or its type where it has none."""
    text = " ".join(str(error).split())
    return (text if len(text) <= WIDTH else f"{text[: WIDTH - len(CUT)]}{CUT}") or type(error).__name__
