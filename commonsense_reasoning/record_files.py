"""Reads files of records: JSON, in which an error names the line, and Parquet, in which it names the row.

JSON is not read by `datasets`, which guesses the type of a column: "true" beside 7 becomes True, and a malformed record
could not be named any more. A Parquet file says the types of its columns, so that `datasets` reads it as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from commonsense_reasoning.tasks import Record, check_record
from randlora_core.datasets.arrow import load_arrow
from randlora_core.files import file_fingerprint, naming, parse_json, read_bytes

T = TypeVar("T")

COLUMNS = tuple(Record.__dataclass_fields__)
"""The fields of a record, which are the columns of a Parquet file; further ones are left out."""
ROWS_AT_A_TIME = 1000
"""Rows of a Parquet file that are copied at once; by itself `datasets` takes a row group, which may be empty."""
SPACE = re.compile(r"\s*")


def read_records(files: Sequence[Path], parse: Callable[[Record], T]) -> list[T]:
    """What `parse` makes of every record of some files, in their order.

    Args:
        files: A JSON file, which is a list of objects, or the Parquet files of one split.
        parse: From a record, whose fields have been checked, to what is wanted of it; refuses one by a ValueError.

    Raises:
        ValueError: A file cannot be read or has no records, or a record is malformed or refused. The message names the
            file, and the record by its number, the first one being 1, in JSON also by its line.
    """
    return [parsed for path in files for parsed in READERS[path.suffix](path, parse)]


def _read_json(path: Path, parse: Callable[[Record], T]) -> list[T]:
    with naming(path):
        text = read_bytes(path).decode("utf-8-sig")
        rows = parse_json(text, list)
        if not rows:
            raise ValueError("it holds an empty list; accepted: a list of objects")
    return _parse_all(rows, parse, lambda index: f"{path}, line {_line(text, index)}: record {index + 1}")


def _line(text: str, index: int) -> int:
    """The line on which an entry of a JSON list begins, the first line being 1."""
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    for _ in range(index):
        _, end = decoder.raw_decode(text, SPACE.match(text, place).end())
        place = text.index(",", end) + 1
    return text.count("\n", 0, SPACE.match(text, place).end()) + 1


def _read_parquet(path: Path, parse: Callable[[Record], T]) -> list[T]:
    content, files = file_fingerprint(path), {"train": (path,)}
    table = load_arrow("parquet", path, files, None, content, batch_size=ROWS_AT_A_TIME)["train"]
    if not set(COLUMNS).issubset(table.column_names):
        raise ValueError(f"{path}: columns {', '.join(table.column_names)}; accepted: {', '.join(COLUMNS)}")
    rows = table.select_columns(list(COLUMNS)).to_list()
    return _parse_all(rows, parse, lambda index: f"{path}: row {index + 1}")


def _parse_all(rows: Sequence[Any], parse: Callable[[Record], T], where: Callable[[int], str]) -> list[T]:
    """What `parse` makes of every row; `where` names one by its index."""
    parsed = []
    for index, fields in enumerate(rows):
        try:
            parsed.append(parse(check_record(fields)))
        except ValueError as error:
            raise ValueError(f"{where(index)}: {error}") from None
    return parsed


READERS = {".json": _read_json, ".parquet": _read_parquet}
"""A file's ending -> what reads it."""
