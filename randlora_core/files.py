"""Files that are written whole or not at all, and the folder where what can be made again is kept."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives the path of a new file beside `path`, which takes its place if the body succeeds and vanishes if not.

    Raises:
        OSError: The file cannot be written, e.g. on a full disk; what was at `path` before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.touch(exist_ok=False)  # not tempfile, whose files only their owner may read
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where what can be made again is kept: $RANDLORA_CACHE, else `randlora` in $XDG_CACHE_HOME, by default ~/.cache.

    Raises:
        RuntimeError: The user has no home.
    """
    if chosen := os.environ.get("RANDLORA_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "randlora"
