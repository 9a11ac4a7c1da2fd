"""The configuration of one vision-language run as a tree of frozen values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from randlora_core.adapters import METHODS, make_config
from randlora_core.experiment.compose import compose
from randlora_core.experiment.config import (
    AdapterChoice,
    BackboneChoice,
    EvaluateConfig,
    PathsConfig,
    SaveConfig,
    TrackingConfig,
    TrainingConfig,
    from_dict,
    require,
    to_dict,
)
from randlora_core.experiment.hardware import pick_device, pick_precision

UNADAPTED = ("zero_shot", "linear_probe", "full")
"""Methods of the experiment that are no adapters: nothing trained, a linear head, all weights."""


@dataclass(frozen=True)
class DatasetChoice:
    """A name of the catalog, or of a folder in `paths.data`."""

    name: str


@dataclass(frozen=True)
class VisionLanguageConfig:
    """One run.

    Attributes:
        adapter: The method.
        backbone: The CLIP model.
        dataset: The images.
        shots: Training images per class; null for all.
        fraction: Share of the training images; null for all.
        seed: Decides data order, augmentation, initialisation, few-shot choice and, by the presets, the bases.
        training: Optimiser and objective.
        evaluate: What is measured.
        paths: Where data and results lie.
        save: What is kept besides the record.
        tracking: Where curves go.
        device: auto takes an accelerator where there is one.
        threads: torch's CPU threads; null leaves torch's choice.
        workers: Processes that prepare images; null for none on a CPU and up to 8 beside a GPU.
    """

    adapter: AdapterChoice
    backbone: BackboneChoice
    dataset: DatasetChoice
    shots: int | None = None
    fraction: float | None = None
    seed: int = 0
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        one_subset = self.shots is None or self.fraction is None
        require(one_subset, "fraction", self.fraction, f"accepted together with shots={self.shots}")
        require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "one of auto, cpu, cuda")
        require(self.threads is None or self.threads > 0, "threads", self.threads, "a positive integer or null")
        enough = self.workers is None or self.workers >= 0
        require(enough, "workers", self.workers, "an integer of at least 0 or null")
        require(self.seed >= 0, "seed", self.seed, "an integer of at least 0")

    @property
    def is_adapted(self) -> bool:
        """Whether adapters are injected."""
        return self.adapter.method not in UNADAPTED

    @property
    def is_trained(self) -> bool:
        """Whether anything is trained."""
        return self.adapter.method != "zero_shot"


def build_config(overrides: Sequence[str]) -> VisionLanguageConfig:
    """Composes `configs/vision_language.yaml` with overrides, checks every value and settles the precision.

    Raises:
        ValueError: An unknown or ill-typed setting, method or method's field, or a GPU that is not there; one line.
    """
    values = compose("vision_language", overrides)
    config = from_dict(VisionLanguageConfig, {**values, "dataset": {"name": values["dataset"]}})
    precision = pick_precision(config.training.precision, pick_device(config.device))
    training = dataclasses.replace(config.training, precision=precision)
    return dataclasses.replace(config, adapter=_check_adapter(config.adapter), training=training)


def _check_adapter(adapter: AdapterChoice) -> AdapterChoice:
    """The choice with every field of its method spelt out, so that a changed default changes the run's identity."""
    if adapter.method in UNADAPTED:
        if adapter.options or adapter.targets:
            name = "targets" if adapter.targets else next(iter(adapter.options))
            raise ValueError(f"adapter.{name} has no effect on method {adapter.method!r}, which takes no settings")
        return adapter
    if adapter.method not in METHODS:
        raise ValueError(f"unknown method {adapter.method!r}; known: {', '.join([*UNADAPTED, *METHODS])}")
    return dataclasses.replace(adapter, options=dataclasses.asdict(make_config(adapter.method, **adapter.options)))


def record_config(config: VisionLanguageConfig, learning_rate: float | None) -> dict[str, Any]:
    """The configuration as the record and the identity carry it, with the learning rate that is really used."""
    values = to_dict(config)
    values["adapter"].pop("learning_rate")
    values["training"]["learning_rate"] = learning_rate
    return _plain(values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
