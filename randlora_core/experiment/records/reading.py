"""Reads what sweeps and tables need from records, and writes the committed file of a comparison's records.

A record is a JSON object written by the ledger; `running.opening` and `running._Run.results` say what is in it.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from randlora_core.files import atomic_file

Record = Mapping[str, Any]
Config = Mapping[str, Any]


def label_of(config: Config) -> str:
    """A run's row in tables: the method's name, such as `RandLoRA-6`, or `RandLoRA-6 4bit` on a quantised base."""
    return with_quantization(config["adapter"]["label"], config)


def with_quantization(name: str, config: Config) -> str:
    """A name with how the base is quantised behind it, if it is."""
    return " ".join(filter(None, (name, config["backbone"].get("quantize"))))


def backbone_of(config: Config) -> str:
    """The backbone's name."""
    return str(config["backbone"]["name"])


def hardware_of(record: Record) -> str:
    """The machine that a run was done on, in a few words."""
    hardware = record["provenance"]["hardware"]
    parts = [hardware["gpu"]] if hardware.get("gpu") else []
    threads = hardware.get("threads", hardware.get("cores"))
    return ", ".join([*parts, hardware["cpu"], "1 thread" if threads == 1 else f"{threads} threads"])


def machine_of(record: Record) -> str:
    """The machine and the counter of memory; seconds and bytes of two runs compare only where it is the same."""
    return f"{hardware_of(record)}, memory by {record['memory']['counter']}"


def is_finished(record: Record | None) -> bool:
    """Whether the record is there and is of a run that came to its end."""
    return record is not None and record["status"] == "finished"


def is_failed(record: Record | None) -> bool:
    """Whether the record is there and is of a run that failed."""
    return record is not None and record["status"] == "failed"


def errors_of(record: Record | None) -> list[dict[str, str]]:
    """Every error that a run has failed with so far, the first one first, each with the time its attempt began."""
    if record is None:
        return []
    last = [{**record["error"], "created": record["created"]}] if is_failed(record) else []
    return [*record.get("earlier_errors", []), *last]  # records of before lack the key


def test_scores(record: Record) -> dict[str, float]:
    """The score of every test set that was evaluated."""
    return {name: score["value"] for name, score in record["scores"]["test"].items()}


def validation_of(record: Record) -> float | None:
    """The score on the validation split; None for a run that failed."""
    return record["scores"]["validation"] if is_finished(record) else None


def collect_records(records: Iterable[Record], path: Path, *, statuses: Collection[str] = ("finished",)) -> int:
    """Writes records as JSON lines, in one step and in an order that does not depend on when they were made.

    Args:
        records: Records; of several of one run the last is written.
        path: File to write, replaced if present; the ledger's `read_records` reads it.
        statuses: Records of other statuses are left out. Failed ones lose their traceback, which names local paths.

    Returns:
        The number of records written.

    Raises:
        OSError: The file cannot be written; what was there before is unchanged.
    """
    chosen = {record["run_id"]: _publishable(record) for record in records if record["status"] in statuses}
    ordered = sorted(
        chosen.values(), key=lambda record: (label_of(record["config"]), record["created"], record["run_id"])
    )
    lines = [json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in ordered]
    with atomic_file(path) as part:
        part.write_text("".join(lines), encoding="utf-8")
    return len(ordered)


def _publishable(record: Record) -> Record:
    changed = dict(record)
    if record.get("error"):
        changed["error"] = {**record["error"], "traceback": ""}
    if record.get("earlier_errors"):
        changed["earlier_errors"] = [{**error, "traceback": ""} for error in record["earlier_errors"]]
    return changed
