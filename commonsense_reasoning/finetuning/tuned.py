"""Opens what a fine-tuning has written, for trying and for merging it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commonsense_reasoning.finetuning.output import read_record
from commonsense_reasoning.finetuning.planning import find_base
from commonsense_reasoning.finetuning.rows import Kind
from randlora_core.adapters.checkpoint import load_adapter
from randlora_core.adapters.files import CONFIG_FILE
from randlora_core.files import read_json
from randlora_core.models import Backbone
from randlora_core.models.language_models import build_language_model


def open_tuned(place: str, base_model: str | None, **options: Any) -> tuple[Backbone, Kind]:
    """The base model with the adapter on it, and what kind of rows it was tuned on.

    Args:
        place: The folder of an adapter, of this library or of PEFT.
        base_model: A name, folder or hub id; None for the one that the folder names.
        **options: Further arguments of `build_language_model`.

    Raises:
        ValueError: There is no adapter, it is damaged or does not fit the base model, or nothing names the base model.
        OSError: The base model cannot be had.
    """
    folder = Path(place).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"--model {place}: there is no {CONFIG_FILE}; accepted: the folder of a tuned adapter")
    record = read_record(folder) or {}
    config = read_json(folder / CONFIG_FILE)
    base = base_model or record.get("base_model") or config.get("base_model_name_or_path")
    if base is None:
        raise ValueError(f"--model {place} names no base model; accepted: with --base_model")
    name, path = find_base(base)
    backbone = build_language_model(name, path=path, **options)
    load_adapter(backbone.model, folder)
    return backbone, record.get("kind", "instruction")
