"""One run of a vision-language experiment, from the command line to its record.

python -m vision_language.train adapter=randlora adapter.rank=6 dataset=digits shots=4 seed=1
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from randlora_core.datasets.images import ImageData, ImageSplit
from randlora_core.datasets.load import load_data
from randlora_core.experiment.batches import ImageBatches, evaluation_loader, training_transform
from randlora_core.experiment.command import run_command
from randlora_core.experiment.config import BackboneChoice
from randlora_core.experiment.hardware import pick_device, pick_workers
from randlora_core.experiment.identity import PROTOCOL, canonical, run_id
from randlora_core.experiment.ledger import SCHEMA, Ledger, describe_error
from randlora_core.experiment.measuring import Measurement, measured
from randlora_core.experiment.predictions import encode_predictions
from randlora_core.experiment.provenance import provenance
from randlora_core.experiment.tracking import Tracker, make_tracker
from randlora_core.experiment.training import FitResult, FitSettings, Resume, fit
from vision_language.config import VisionLanguageConfig, build_config, record_config
from vision_language.evaluation import accuracy, class_tokens, predict
from vision_language.learning_rates import LearningRate, choose_learning_rate
from vision_language.model import load_backbone, make_objective, parameter_section
from vision_language.objective import ProbeObjective, TextBatches
from vision_language.weights import save_weights

EXPERIMENT = "vision_language"
OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and identified, but not begun.

    Attributes:
        run_id: Its identity.
        config: Its configuration.
        learning_rate: The learning rate it takes, and why.
        data: Its images.
        weights_hash: Hash of the backbone's weights.
        recorded: Its configuration as the record carries it.
        ledger: Where its record belongs.
    """

    run_id: str
    config: VisionLanguageConfig
    learning_rate: LearningRate
    data: ImageData
    weights_hash: str
    recorded: Mapping[str, Any]
    ledger: Ledger

    @property
    def path(self) -> Path:
        """The file of the run's record."""
        return self.ledger.path(self.run_id)

    @property
    def weights(self) -> Path:
        """The folder of the trained weights, where they are kept."""
        return self.ledger.scratch(self.run_id) / "weights"

    @property
    def finished(self) -> dict[str, Any] | None:
        """The run's record if it came to its end and left all that is asked for, else None."""
        record = self.ledger.finished(self.run_id)
        lacks_weights = self.config.save.adapter and self.config.is_trained and not self.weights.is_dir()
        return None if lacks_weights else record


def plan(overrides: Sequence[str]) -> Plan:
    """Composes, checks and identifies a run.

    Args:
        overrides: Hydra overrides of `configs/vision_language.yaml`.

    Raises:
        ValueError: A setting, dataset, backbone or method that does not exist or does not fit; one line.
    """
    config = build_config(overrides)
    root = config.paths.data
    data = load_data(config.dataset.name, root=root, shots=config.shots, fraction=config.fraction, seed=config.seed)
    weights_hash = _weights_hash(config.backbone.name, tuple(sorted(config.backbone.options.items())))
    learning_rate = choose_learning_rate(config)
    recorded = canonical(record_config(config, learning_rate.value))
    identity = run_id(recorded, data=data.fingerprint, weights=weights_hash, experiment=EXPERIMENT)
    ledger = Ledger(Path(config.paths.results).expanduser() / EXPERIMENT)
    return Plan(identity, config, learning_rate, data, weights_hash, recorded, ledger)


@functools.cache
def _weights_hash(name: str, options: tuple[tuple[str, Any], ...]) -> str:
    return load_backbone(BackboneChoice(name, dict(options))).weights_hash


def run(overrides: Sequence[str], *, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Trains and evaluates one run and writes its record; a run that has finished before is not done again.

    Args:
        overrides: Hydra overrides of `configs/vision_language.yaml`.
        on_progress: Called with step, steps, loss, images_per_second and phase ("train" or "evaluate").

    Returns:
        The record.

    Raises:
        ValueError: Bad input; no record is written where the run cannot be identified.
        Exception: Whatever made the run fail, after a failed record has been written.
        KeyboardInterrupt: The run was interrupted; no record is written, and the next call resumes it.
    """
    planned = plan(overrides)
    record = planned.finished
    return record if record is not None else execute(planned, on_progress)


def execute(planned: Plan, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Does a planned run, whether or not it has finished before; otherwise as `run`."""
    if planned.config.threads is not None:
        torch.set_num_threads(planned.config.threads)
    planned.ledger.directory.mkdir(parents=True, exist_ok=True)
    record = _opening(planned)
    tracker = make_tracker(planned.config.tracking, planned.run_id, record["config"], str(planned.ledger.directory))
    try:
        record.update(_Run(planned, tracker, on_progress or (lambda event: None)).results())
        record["status"] = "finished"
        planned.ledger.write(record)
    except Exception as error:
        record.update(status="failed", error=describe_error(error))
        with contextlib.suppress(OSError):
            planned.ledger.write({key: value for key, value in record.items() if key not in _RESULTS})
        tracker.finish(record)
        raise
    tracker.finish(record)
    _state_path(planned).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        planned.ledger.scratch(planned.run_id).rmdir()
    return record


_RESULTS = ("curves", "result", "predictions", "time", "memory", "saved")


def _state_path(planned: Plan) -> Path:
    return planned.ledger.scratch(planned.run_id) / "state.safetensors"


def _opening(planned: Plan) -> dict[str, Any]:
    """What is known of a record before the run begins."""
    data, rate = planned.data, planned.learning_rate
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "run_id": planned.run_id,
        "experiment": EXPERIMENT,
        "status": "failed",
        "error": None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dict(planned.recorded),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "sizes": dict(data.sizes),
            "short_classes": dict(data.short_classes),
            "is_subset": data.is_subset,
        },
        "weights": {"backbone": planned.config.backbone.name, "sha256": planned.weights_hash},
        "provenance": provenance(),
        "learning_rate": {"value": rate.value, "source": rate.source, "grid": list(rate.grid)},
    }


class _Run:
    """The parts of a run while it goes on."""

    def __init__(self, planned: Plan, tracker: Tracker, on_progress: OnProgress):
        config = planned.config
        self.planned, self.config, self.data = planned, config, planned.data
        self.tracker, self.on_progress = tracker, on_progress
        self.device = pick_device(config.device)
        self.workers = pick_workers(config.workers, self.device)
        self.backbone = load_backbone(config.backbone)
        self.objective = make_objective(self.backbone, config.adapter, len(self.data.class_names), config.seed)
        self.tokens = class_tokens(self.backbone, self.data.class_names, self.data.templates)
        self.steps = config.training.num_steps(len(self.data.train)) if config.is_trained else 0
        self.begun = time.perf_counter()

    def results(self) -> dict[str, Any]:
        """Trains, evaluates, keeps weights; the record's sections on it."""
        parameters = parameter_section(self.objective)
        with measured(self.device) as training:
            fitted = self._fit() if self.config.is_trained else FitResult()
        self._report(phase="evaluate", step=self.steps, loss=fitted.losses[-1] if fitted.losses else None)
        with measured(self.device) as evaluation:
            validation = accuracy(*self._predict(self.data.validation))
            tested = self._predict(self.data.test) if self.config.evaluate.test else None
        return {
            "parameters": parameters,
            "curves": _curves(fitted),
            "result": {
                "test_accuracy": accuracy(*tested) if tested else None,
                "validation_accuracy": validation,
                "test_size": len(self.data.test) if tested else None,
            },
            "predictions": encode_predictions(*tested) if tested else None,
            "time": self._times(fitted, evaluation),
            "memory": (training if self.config.is_trained else evaluation).memory(),
            "saved": self._save(),
        }

    def _fit(self) -> FitResult:
        training = self.config.training
        settings = FitSettings(
            steps=self.steps,
            learning_rate=self.planned.learning_rate.value,
            accumulate=training.accumulate,
            weight_decay=training.weight_decay,
            clip=training.clip,
            precision=training.precision,
            seed=self.config.seed,
            evaluate_every=self.config.evaluate.every,
            workers=self.workers,
        )
        resume = Resume(_state_path(self.planned), self.planned.run_id, self.config.save.state_seconds)
        watch = _Watch(training.batch_size, self.steps, self._report)
        return fit(
            self.objective,
            self._batches(),
            settings,
            self.device,
            resume=resume,
            on_step=watch,
            evaluate=lambda: accuracy(*self._predict(self.data.validation)),
        )

    def _batches(self) -> torch.utils.data.Dataset:
        training = self.config.training
        flip = self.data.allow_flip if training.flip is None else training.flip
        images = ImageBatches(
            self.data.train,
            training_transform(self.backbone, crop=training.crop, flip=flip),
            batch_size=training.batch_size // training.accumulate,
            num_batches=self.steps * training.accumulate,
            seed=self.config.seed,
        )
        if isinstance(self.objective, ProbeObjective):
            return images
        return TextBatches(images, self.tokens[0], every_class=training.objective == "class_wise")

    def _predict(self, split: ImageSplit) -> tuple[Tensor, Tensor]:
        evaluate = self.config.evaluate
        loader = evaluation_loader(
            split,
            self.backbone,
            batch_size=evaluate.batch_size,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        return predict(self.objective, loader, self.tokens, self.device, precision=self.config.training.precision)

    def _report(self, **event: Any) -> None:
        self.on_progress({"steps": self.steps, "images_per_second": None, **event})
        if event["phase"] == "train":
            self.tracker.log(event["step"], {"loss": event["loss"], "images_per_second": event["images_per_second"]})

    def _times(self, fitted: FitResult, evaluation: Measurement) -> dict[str, Any]:
        images = self.steps * self.config.training.batch_size
        return {
            "train_seconds": fitted.seconds,
            "evaluate_seconds": evaluation.seconds,
            "total_seconds": time.perf_counter() - self.begun,
            "images_per_second": images / fitted.seconds if fitted.seconds else None,
        }

    def _save(self) -> str | None:
        if not (self.config.save.adapter and self.config.is_trained):
            return None
        save_weights(self.planned.weights, self.objective, self.config)
        return str(self.planned.weights.relative_to(self.planned.ledger.directory))


class _Watch:
    """Turns steps into progress events with images per second."""

    def __init__(self, batch_size: int, steps: int, report: Callable[..., None]):
        self.batch_size, self.steps, self.report = batch_size, steps, report
        self.first, self.started = None, 0.0

    def __call__(self, step: int, loss: float) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first, self.started = step, now
        elapsed = now - self.started
        speed = (step - self.first) * self.batch_size / elapsed if elapsed > 0 else None
        self.report(phase="train", step=step, loss=loss, images_per_second=speed)


def _curves(fitted: FitResult) -> dict[str, list[list[float]]]:
    return {
        "loss": [[step, loss] for step, loss in enumerate(fitted.losses, start=1)],
        "validation": [[step, score] for step, score in fitted.validation],
    }


def main() -> None:
    """The command line; exits with 0, or with 1 and one line on what was wrong."""
    sys.exit(run_command(EXPERIMENT, plan, execute, sys.argv[1:]))


if __name__ == "__main__":
    main()
