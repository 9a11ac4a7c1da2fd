"""Anybody's data as rows to learn: files or hub repositories through `datasets`, with the columns recognised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from randlora_core.errors import one_line

Kind = Literal["instruction", "chat", "text"]

FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""A file's ending -> the reader of `datasets`."""
CHAT_COLUMNS = ("messages", "conversations")
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
"""What a message's speaker and text are called."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Other names of speakers -> those of chat templates."""
ACCEPTED = f"instruction and output (input where there is one), {' or '.join(CHAT_COLUMNS)} of chat messages, or text"


@dataclass(frozen=True)
class Rows:
    """Rows of one kind.

    Attributes:
        kind: "instruction" for dictionaries of instruction, input and output; "chat" for lists of {"role", "content"};
            "text" for texts.
        values: The rows.
    """

    kind: Kind
    values: Sequence[Any]


def read_rows(place: str) -> Rows:
    """Reads a file, or the split "train" of a folder or a hub repository.

    Raises:
        ValueError: There is nothing of this name, it cannot be read, its columns are not recognised, it has no rows, or
            a row's value is missing or no text.
    """
    table = _load(place)
    columns = table.column_names
    if not len(table):
        raise ValueError(f"--data_path {place} has no rows")
    numbered = [(f"--data_path {place}, row {number}", row) for number, row in enumerate(table, start=1)]
    if {"instruction", "output"}.issubset(columns):
        return Rows("instruction", [_instruction(where, row) for where, row in numbered])
    for column in CHAT_COLUMNS:
        if column in columns:
            return Rows("chat", [_conversation(where, row[column]) for where, row in numbered])
    if "text" in columns:
        return Rows("text", [_text(where, row, "text") for where, row in numbered])
    raise ValueError(f"--data_path {place} has the columns {', '.join(columns)}; accepted: {ACCEPTED}")


def _load(place: str) -> Any:
    """The table of `datasets` in a place."""
    import datasets

    path = Path(place).expanduser()
    if path.is_file() and path.suffix.lower() not in FILES:
        raise ValueError(f"--data_path {place}: the file's ending is {path.suffix!r}; accepted: {', '.join(FILES)}")
    if not path.exists() and (path.suffix.lower() in FILES or place.startswith((".", "/", "~"))):
        raise ValueError(f"--data_path {place}: there is no such file")
    try:
        if not path.is_file():
            return datasets.load_dataset(str(path) if path.is_dir() else place, split="train")
        reader = FILES[path.suffix.lower()]
        return datasets.load_dataset(reader, data_files=str(path), split="train", **_csv_options(path, reader))
    except Exception as error:  # whatever a reader or the hub raises
        causes = [error.__cause__, error] if error.__cause__ else [error]
        raise ValueError(f"--data_path {place} cannot be read: {'; '.join(map(one_line, causes))}") from error


def _csv_options(path: Path, reader: str) -> dict[str, Any]:
    """Reads every column of a CSV file as text: by itself, "true" would become True and "007" the number 7."""
    import csv

    import datasets

    if reader != "csv":
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        columns = next(csv.reader(file), [])
    features = datasets.Features({column: datasets.Value("string") for column in columns})
    return {"features": features, "keep_default_na": False, "encoding": "utf-8-sig"}


def _text(where: str, row: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    value = row[key]
    if not isinstance(value, str) or not (value.strip() or empty):
        raise ValueError(f"{where}: {key} is {value!r}; accepted: a text")
    return value


def _instruction(where: str, row: Mapping[str, Any]) -> dict[str, str]:
    values = {key: _text(where, row, key) for key in ("instruction", "output")}
    return {**values, "input": "" if row.get("input") is None else _text(where, row, "input", empty=True)}


def _conversation(where: str, messages: Any) -> list[dict[str, str]]:
    """Messages with the keys and roles of chat templates."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: {messages!r} is no list of messages")
    chat = []
    for message in messages:
        keys = next((keys for keys in MESSAGE_KEYS if isinstance(message, Mapping) and {*keys} <= message.keys()), None)
        if keys is None:
            accepted = " or ".join(map(" and ".join, MESSAGE_KEYS))
            raise ValueError(f"{where}: the message {message!r}; accepted: one with {accepted}")
        role = _text(where, message, keys[0])
        chat.append({"role": ROLES.get(role, role), "content": _text(where, message, keys[1], empty=True)})
    if all(message["role"] != "assistant" for message in chat):
        raise ValueError(f"{where}: no message is the assistant's, so that there is no answer to learn")
    return chat
