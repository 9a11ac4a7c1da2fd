"""Files that are read with errors that name them or written whole, and the folder of what can be made again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def naming(place: Path | str) -> Iterator[None]:
    """Errors about a file's contents become ValueErrors that start with the file's name."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """The file's contents.

    Raises:
        ValueError: It cannot be read; the message has the reason without the file's name, for use within `naming`.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None


def parse_json(text: str | bytes, kind: type[dict] | type[list] = dict) -> Any:
    """The JSON object (`kind` is dict) or list (`kind` is list) that a text holds.

    Raises:
        ValueError: It holds something else; the message has the reason without a file's name, for use within `naming`.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 is a ValueError, too
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(content, kind):
        expected = {dict: "an object", list: "a list"}[kind]
        raise ValueError(f"it holds a JSON {type(content).__name__}, not {expected}")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: It cannot be read or is something else; the message starts with the file's name.
    """
    with naming(path):
        return parse_json(read_bytes(path))


def require_folder(path: Path) -> Path:
    """Refuses a path at which there can be no folder, since it or a part of it is a file.

    Returns:
        The part of the path that is there: the folder itself, or the nearest one above it.

    Raises:
        ValueError: Naming the path and the file.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        what = "it" if there == path else there
        raise ValueError(f"{path}: {what} is a file; accepted: a folder, which need not be there yet")
    return there


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives the path of a new file beside `path`, which takes its place if the body succeeds and vanishes if not.

    Raises:
        OSError: The file cannot be written, e.g. on a full disk; what was at `path` before is still there.
    """
    with atomic_files([path]) as (part,):
        yield part


@contextlib.contextmanager
def atomic_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Does for files that belong together what `atomic_file` does for one.

    All of them are on the disk before the first one takes its place.

    Raises:
        OSError: As in `atomic_file`.
    """
    parts = [path.with_name(f".{path.name}.{uuid.uuid4().hex}.part") for path in paths]
    try:
        for part in parts:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.touch(exist_ok=False)  # not tempfile, whose files only their owner may read
        yield parts
        for part in parts:
            with part.open("rb") as written:
                os.fsync(written.fileno())
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where what can be made again is kept: $RANDLORA_CACHE, else `randlora` in $XDG_CACHE_HOME, by default ~/.cache.

    Raises:
        RuntimeError: The user has no home.
    """
    if chosen := os.environ.get("RANDLORA_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "randlora"


def file_fingerprint(path: Path) -> str:
    """The SHA-256 of a file's bytes; a file is read again only after its size or modification time has changed.

    What was computed is kept in the cache folder under (path, size, modification time in nanoseconds). Where there
    is no cache folder that can be written, the file is read at every call.

    Raises:
        OSError: The file is not there or cannot be read.
    """
    path = Path(path).resolve()
    status = path.stat()
    key = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        kept = cache_folder() / "fingerprints" / name
        entry = json.loads(kept.read_text(encoding="utf-8"))
        if entry == {**key, "sha256": entry["sha256"]}:
            return entry["sha256"]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError, RuntimeError), atomic_file(cache_folder() / "fingerprints" / name) as part:
        part.write_text(json.dumps({**key, "sha256": sha256}), encoding="utf-8")
    return sha256
