"""A run's learning rate: the configuration's, else the tuned one of the committed records, else the preset's."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from randlora_core.experiment.identity import canonical
from randlora_core.experiment.ledger import read_records
from vision_language.config import VisionLanguageConfig, record_config

RECORDS = Path(__file__).resolve().parent / "records"
"""The committed records; those of tuning runs are in files called tuning_*.jsonl."""


@dataclass(frozen=True)
class LearningRate:
    """A learning rate and where it comes from.

    Attributes:
        value: Peak of the schedule; None where nothing is trained.
        source: "config", "tuned", "tuned_otherwise" (for other settings of the method or the training, on the same
            data), "preset", or "none" where nothing is trained.
        grid: The tried values with their validation accuracy, where it was tuned.
    """

    value: float | None
    source: Literal["config", "tuned", "tuned_otherwise", "preset", "none"]
    grid: tuple[Mapping[str, Any], ...] = ()


def choose_learning_rate(config: VisionLanguageConfig) -> LearningRate:
    """Chooses as the module's first line says.

    Raises:
        ValueError: There is none: not given, not tuned, and the preset has no default.
    """
    if not config.is_trained:
        return LearningRate(None, "none")
    if config.training.learning_rate is not None:
        return LearningRate(config.training.learning_rate, "config")
    tuned = _tuned(config)
    if tuned is not None:
        return tuned
    if config.adapter.learning_rate is None:
        label = config.adapter.label
        raise ValueError(f"training.learning_rate=None: {label!r} has no tuned and no default one; give a number")
    return LearningRate(config.adapter.learning_rate, "preset")


def _tuned(config: VisionLanguageConfig) -> LearningRate | None:
    """The tuned learning rate: that of the same method and training, else that of others on the same data.

    Among equally good tunings the one in the run's number format comes first, then the newest.
    """
    from randlora_core.experiment.tuning import tuned_learning_rate

    setting = {
        "label": config.adapter.label,
        "dataset": config.dataset.name,
        "backbone": config.backbone.name,
        "shots": config.shots,
        "fraction": config.fraction,
    }
    wanted, precision = _tuned_for(canonical(record_config(config, None))), config.training.precision

    def nearness(tuning: Sequence[Mapping[str, Any]]) -> tuple[bool, bool, str]:
        own = tuning[0]["config"]
        newest = max(record.get("created", "") for record in tuning)
        return _tuned_for(own) == wanted, own["training"]["precision"] == precision, newest

    for tuning in sorted(_tunings(_tuning_records()), key=nearness, reverse=True):
        if (found := tuned_learning_rate(tuning, **setting)) is not None:
            source = "tuned" if nearness(tuning)[0] else "tuned_otherwise"
            return LearningRate(found.value, source, tuple(found.grid))
    return None


def _tunings(records: Iterable[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    """The records by what they tuned: method, training, number format and data."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        config = record["config"]
        facts = [config[key] for key in ("dataset", "backbone", "shots", "fraction")]
        key = json.dumps([_tuned_for(config), config["training"]["precision"], facts], sort_keys=True)
        found.setdefault(key, []).append(record)
    return found.values()


def _tuned_for(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recorded configuration that a learning rate belongs to: the method and how it is trained.

    The number format is not in it: what was tuned in fp32 serves machines that train in bf16.
    """
    adapter = {key: value for key, value in recorded["adapter"].items() if key != "seed"}
    return {"adapter": adapter, "training": {**recorded["training"], "learning_rate": None, "precision": None}}


@functools.cache
def _tuning_records() -> list[dict[str, Any]]:
    files = sorted(RECORDS.glob("tuning_*.jsonl"))
    return read_records(*files) if files else []
