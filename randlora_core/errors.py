"""Parts of error messages: what another library said, in one line, and the known names that a wrong one is near to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

WIDTH = 400
"""Characters of a message that are shown at most; some libraries' explanations fill a screen."""
CUT = " [...]"
"""What stands for the rest of a longer one."""


def one_line(error: BaseException) -> str:
    """An error's message on one line, its end left out where it is long, or its type where it has none."""
    text = " ".join(str(error).split())
    return (text if len(text) <= WIDTH else f"{text[: WIDTH - len(CUT)]}{CUT}") or type(error).__name__


def near(value: object, known: Iterable[str]) -> str:
    """A remark for an error message: the known names closest to `value`, or an empty string."""
    matches = difflib.get_close_matches(str(value), list(known), n=4, cutoff=0.5)
    return f" (did you mean {', '.join(matches)}?)" if matches else ""
