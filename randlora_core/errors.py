"""Messages of errors that other libraries raise, as parts of this library's own."""

from __future__ import annotations

import textwrap

WIDTH = 400
"""Characters of a message that are shown at most; some libraries' explanations fill a screen."""


def one_line(error: BaseException) -> str:
    """An error's message on one line, its end left out where it is long, or its type where it has none."""
    return textwrap.shorten(str(error), WIDTH) or type(error).__name__
