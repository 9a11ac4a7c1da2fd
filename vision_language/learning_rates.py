"""A run's learning rate: the configuration's, else the tuned one of the committed records, else the preset's."""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
    """The tuned learning rate: that of the same method and training, else that of others on the same data."""
    from randlora_core.experiment.tuning import tuned_learning_rate

    records = _tuning_records()
    setting = {
        "label": config.adapter.label,
        "dataset": config.dataset.name,
        "backbone": config.backbone.name,
        "shots": config.shots,
        "fraction": config.fraction,
    }
    wanted = _tuned_for(canonical(record_config(config, None)))
    same = [record for record in records if _tuned_for(record["config"]) == wanted]
    found, source = tuned_learning_rate(same, **setting), "tuned"
    if found is None:
        found, source = tuned_learning_rate(records, **setting), "tuned_otherwise"
    return None if found is None else LearningRate(found.value, source, tuple(found.grid))


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
