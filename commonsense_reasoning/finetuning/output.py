"""What a fine-tuning leaves: the adapter in PEFT's format or this library's, a record of the run, a model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from randlora_core.adapters.checkpoint import save_adapter
from randlora_core.adapters.files import CONFIG_FILE, TENSORS_FILE
from randlora_core.adapters.peft_export import export_peft
from randlora_core.files import atomic_files, read_json

RECORD_FILE = "finetune.json"
CARD_FILE = "README.md"
FILES = (CONFIG_FILE, TENSORS_FILE, CARD_FILE, RECORD_FILE)
"""All that a finished fine-tuning writes, and all that is uploaded."""


def write_adapter(model: nn.Module, folder: Path) -> tuple[str, str]:
    """Writes the adapter as PEFT does, or where PEFT has no such adapter as this library does.

    Returns:
        "peft" or "randlora", and the reason for the second one.

    Raises:
        OSError: The files cannot be written.
    """
    try:
        export_peft(model, folder)
    except ValueError as error:
        save_adapter(model, folder)
        return "randlora", str(error)
    return "peft", ""


def write_description(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the record of a finished run and the model card; the record says that the run is finished."""
    with atomic_files([folder / CARD_FILE, folder / RECORD_FILE]) as (card, kept):
        card.write_text(model_card(record), encoding="utf-8")
        kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the finished run in a folder; None where there is none.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / RECORD_FILE
    return read_json(path) if path.is_file() else None


def model_card(record: Mapping[str, Any]) -> str:
    """The text of the model card: how to use the adapter, its settings, its data and its metrics."""
    options, data, parameters = record["options"], record["data"], record["parameters"]
    trained = f"{parameters['trainable']:,} of {parameters['total']:,} ({parameters['trainable_percent']:.3f} %)"
    facts = {
        "Base model": options["base_model"],
        "Data": f"{options['data_path']} ({data['kind']} rows)",
        "Rows": f"{data['train']:,} for training, {data['validation']:,} for validation",
        "Trained parameters": trained,
    }
    lines = [
        *_metadata(record),
        f"# {record['label']} on {options['base_model']}",
        "",
        *_table("", "", facts),
        *[f"- {remark}" for remark in data["remarks"]],
        "",
        "## Use",
        "",
        *_usage(record),
        "",
        "## Results",
        "",
        *_table("Metric", "Value", {name: _number(value) for name, value in record["metrics"].items()}),
        "## Settings",
        "",
        *_table("Option", "Value", options),
        "## Versions",
        "",
        *_table("Package", "Version", record["provenance"]["packages"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _metadata(record: Mapping[str, Any]) -> list[str]:
    """The card's YAML head, which the hub reads; it takes names of the hub only."""
    lines = ["---", "pipeline_tag: text-generation"]
    if record["format"] == "peft":
        lines.append("library_name: peft")
    for key, name in (("base_model", record["hub"]["base_model"]), ("datasets", record["hub"]["data"])):
        if name is not None:
            lines.append(f"{key}: {json.dumps(name if key == 'base_model' else [name])}")
    return [*lines, f"tags: {json.dumps(list(dict.fromkeys(['randlora', record['adapter']])))}", "---", ""]


def _usage(record: Mapping[str, Any]) -> list[str]:
    """How to open the adapter."""
    if record["format"] == "peft":
        package, opened = "peft import PeftModel", "PeftModel.from_pretrained"
        note = "The adapter is in the format of Hugging Face PEFT; `randlora_core.load_adapter` opens it, too."
    else:
        package, opened = "randlora_core import load_adapter", "load_adapter"
        note = f"The adapter is in the format of randlora_core: {record['format_reason']}."
    code = [
        f"from {package}",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(record['base_location'])})",
        f'model = {opened}(base, "FOLDER_OF_THIS_FILE")',
    ]
    return [note, "", "```python", *code, "```"]


def _table(first: str, second: str, rows: Mapping[str, Any]) -> list[str]:
    cells = [(key, " ".join(str(value).split()).replace("|", "\\|")) for key, value in rows.items()]
    return [f"| {first} | {second} |", "|--|--|", *(f"| {key} | {value} |" for key, value in cells), ""]


def _number(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
