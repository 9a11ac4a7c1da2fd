"""Tables in Markdown pages that are made from files: they stand between marks and are written or checked by a command.

<!-- MARK NAME -->
what `make(NAME)` gives
<!-- end of MARK NAME -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def filled(text: str, mark: str, make: Callable[[str], str]) -> str:
    """`text` with what stands between the marks made anew.

    Raises:
        ValueError: If there is no such mark.
    """
    block = re.compile(rf"(<!-- {mark} ([\w/]+) -->\n).*?(<!-- end of {mark} \2 -->)", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"no {mark} block found; accepted: <!-- {mark} NAME --> ... <!-- end of {mark} NAME -->")
    return block.sub(lambda match: match[1] + make(match[2]) + match[3], text)


def write_or_check(
    pages: Sequence[Path], updated: Callable[[str], str], command: str, arguments: Sequence[str] | None
) -> int:
    """The command line of a program that fills pages; returns the exit code.

    Args:
        pages: The files.
        updated: Gives a page's new text from its old one.
        command: The program's name, for messages.
        arguments: Nothing, which writes, or --check, which gives exit code 1 where a page would change; None stands for
            the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if unknown := [argument for argument in arguments if argument != "--check"]:
        print(f"error: unknown argument {unknown[0]!r}; accepted: --check", file=sys.stderr)
        return 2
    old = {page: page.read_text(encoding="utf-8") if page.exists() else "" for page in pages}
    changed = {page: fresh for page, text in old.items() if (fresh := updated(text)) != text}
    if "--check" in arguments:
        for page in changed:
            print(f"error: {page.name} differs from the committed results; run {command}", file=sys.stderr)
        return int(bool(changed))
    for page, text in changed.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    return 0
