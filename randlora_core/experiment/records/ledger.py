"""One JSON record per run: written whole or not at all, read from folders and from committed JSON lines alike."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from randlora_core.files import atomic_file, naming, parse_json

SCHEMA = 2
"""Version of the record's layout."""


class Ledger:
    """The records of one experiment, `<directory>/<run id>.json`."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    def path(self, run_id: str) -> Path:
        """Where the record of a run lies."""
        return self.directory / f"{run_id}.json"

    def scratch(self, run_id: str) -> Path:
        """The folder for what a run keeps beside its record: resumable state, saved weights."""
        return self.directory / run_id

    def lock(self, run_id: str) -> Path:
        """The file that is locked by the process that does the run; see `lock.run_lock`."""
        return self.directory / f"{run_id}.lock"

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run, or None.

        Raises:
            ValueError: The file is no record.
        """
        path = self.path(run_id)
        return _read_record(path.read_bytes(), path) if path.exists() else None

    def finished(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run that came to its end, or None."""
        record = self.read(run_id)
        return record if record is not None and record["status"] == "finished" else None

    def write(self, record: Mapping[str, Any]) -> Path:
        """Writes a record atomically; replaces one of the same run, but never a finished one by a failed one.

        Returns:
            The path of the record.

        Raises:
            OSError: It cannot be written; no partial record is left.
            ValueError: A number is not finite.
        """
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        path = self.path(record["run_id"])
        if record["status"] != "finished" and self.finished(record["run_id"]) is not None:
            return path
        with atomic_file(path) as part:
            part.write_text(text, encoding="utf-8")
        return path


def describe_error(error: BaseException) -> dict[str, str]:
    """Type, message and traceback of an error, as a failed record carries them."""
    return {
        "type": type(error).__name__,
        "message": str(error).strip() or type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
    }


def read_records(*paths: str | Path) -> list[dict[str, Any]]:
    """Reads records from folders of .json and .jsonl files, or from such files, sorted by creation time.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A file holds something else than records.
    """
    records = [record for path in paths for file in _files(Path(path)) for record in _read_file(file)]
    return sorted(records, key=lambda record: (record["created"], record["run_id"]))


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder of records")
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl") and file.name[0] != ".")


def _read_file(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = enumerate(content.splitlines(), start=1)
        return [_read_record(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    return [_read_record(content, path)]


def _read_record(content: bytes, place: Path | str) -> dict[str, Any]:
    with naming(place):
        record = parse_json(content)
        if record.get("schema") != SCHEMA:
            raise ValueError(f"a record of schema {record.get('schema')}; known: {SCHEMA}")
    return record
