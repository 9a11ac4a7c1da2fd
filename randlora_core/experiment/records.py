"""What the sweep and the tables read in a record, and the committed file of a sweep's records.

A record is a JSON object written by the ledger. Tables, figures and the choice of learning rates read records through
the functions below and nothing else, so the record's layout is known in one place on the reading side.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from randlora_core.files import atomic_file

Record = Mapping[str, Any]
Config = Mapping[str, Any]


def label_of(config: Config) -> str:
    """The method's name in tables, such as `RandLoRA-6`."""
    return str(config["adapter"]["label"])


def dataset_of(config: Config) -> str:
    """The dataset's name."""
    return _name(config["dataset"])


def backbone_of(config: Config) -> str:
    """The backbone's name."""
    return _name(config["backbone"])


def seed_of(config: Config) -> int:
    """The run's seed."""
    return int(config["seed"])


def name_of(config: Config) -> str:
    """A run in a few words for progress bars and messages, such as `digits RandLoRA-6 seed 1`."""
    return f"{dataset_of(config)} {label_of(config)} seed {seed_of(config)}"


def is_finished(record: Record | None) -> bool:
    """Whether the record is there and is of a run that came to its end."""
    return record is not None and record["status"] == "finished"


def collect_records(records: Iterable[Record], path: Path, *, statuses: Collection[str] = ("finished",)) -> int:
    """Writes records as JSON lines, in one step and in an order that does not depend on when they were made.

    Args:
        records: Records; one run given twice is written once.
        path: File to write, replaced if present; the ledger's `read_records` reads it.
        statuses: Records of other statuses are left out. Failed ones lose their traceback, which names local paths.

    Returns:
        The number of records written.

    Raises:
        OSError: The file cannot be written; what was there before is unchanged.
    """
    chosen = {record["run_id"]: _publishable(record) for record in records if record["status"] in statuses}
    ordered = sorted(chosen.values(), key=_order)
    lines = [json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in ordered]
    with atomic_file(path) as part:
        part.write_text("".join(lines), encoding="utf-8")
    return len(ordered)


def _publishable(record: Record) -> Record:
    return {**record, "error": {**record["error"], "traceback": ""}} if record.get("error") else record


def _order(record: Record) -> tuple[str, str, int, str]:
    config = record["config"]
    return dataset_of(config), label_of(config), seed_of(config), record["run_id"]


def _name(value: Any) -> str:
    return str(value["name"]) if isinstance(value, Mapping) else str(value)
