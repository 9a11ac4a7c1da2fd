"""Does a planned run: builds its task, trains, evaluates, and writes the record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from randlora_core.experiment.adaptation import apply_method, original_weights, parameter_section, save_weights
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.identity import PROTOCOL
from randlora_core.experiment.interface import Experiment, Score, Task
from randlora_core.experiment.loop.distributed import evaluating, gathered
from randlora_core.experiment.loop.fit import FitResult, FitSettings, Resume, fit
from randlora_core.experiment.loop.hardware import is_first_process, pick_device, pick_workers
from randlora_core.experiment.loop.measuring import Measurement, measured
from randlora_core.experiment.loop.memory import memory_advice, quantised_bytes
from randlora_core.experiment.loop.seeding import seed_global
from randlora_core.experiment.planning import PlannedRun, plan_run, prepare_results
from randlora_core.experiment.records.ledger import SCHEMA, describe_error
from randlora_core.experiment.records.lock import run_lock
from randlora_core.experiment.records.predictions import encode_predictions
from randlora_core.experiment.records.provenance import provenance
from randlora_core.experiment.records.reading import errors_of
from randlora_core.experiment.records.tracking import Tracker, make_tracker

FLOORS = {"cosine": 0.01, "linear": 0.0}
"""Share of the peak learning rate at which a schedule ends; the cosine's as in the paper's released code."""

OnProgress = Callable[[dict[str, Any]], None]


def run(experiment: Experiment, overrides: Sequence[str], on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Plans and does one run; one that has finished before is not done again.

    Args:
        experiment: The experiment.
        overrides: Hydra overrides of its entry in `configs/`.
        on_progress: As for `execute`.

    Returns:
        The record.

    Raises:
        ValueError: Bad input; no record is written where the run cannot be identified.
    """
    planned = plan_run(experiment, overrides)
    return planned.finished or execute(planned, on_progress)


def execute(planned: PlannedRun, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Trains and evaluates a planned run and writes its record, whether or not it has finished before.

    It prints first which run it is, its learning rate and where that comes from. Meanwhile it holds the run's lock. A
    run that another process has finished since it was planned is not done again.

    Args:
        planned: The run.
        on_progress: Called with step, steps, loss, speed (examples a second), unit and phase ("train" or "evaluate").

    Returns:
        The record.

    Raises:
        Exception: Whatever made the run fail, after a failed record has been written.
        ValueError: The folder of results cannot be written.
        UnderWayError: Another process is doing the run.
        KeyboardInterrupt: The run was interrupted; no record is written, and the next call resumes it.
    """
    prepare_results(planned)
    with run_lock(planned.lock) if is_first_process() else contextlib.nullcontext():
        found = replace(planned, record=planned.ledger.read(planned.run_id))
        if planned.finished is None and found.finished is not None:
            return found.finished
        return _execute(found, on_progress)


def _execute(planned: PlannedRun, on_progress: OnProgress | None) -> dict[str, Any]:
    """Does a run whose lock this process holds."""
    if planned.config.threads is not None:
        torch.set_num_threads(planned.config.threads)
    if is_first_process():
        print(f"run {planned.run_id}: {planned.name}\nlearning rate: {planned.learning_rate.describe()}", flush=True)
        if (budget := planned.config.adapter.budget) is not None:
            print(f"budget {budget.describe()}", flush=True)
    record = opening(planned)
    tracker = make_tracker(planned, str(planned.ledger.directory))
    training = planned.config.training
    try:
        with memory_advice(training.batch_size, training.accumulate, planned.config.evaluate.batch_size):
            running = _Run(planned, tracker, on_progress or (lambda event: None))
            finished = {**record, **running.results(), "status": "finished"}
        if is_first_process():
            planned.ledger.write(finished)  # before the weights, so that scores are not lost with them
        if planned.config.save.adapter and planned.config.is_trained:
            with gathered(running.task.module):
                if is_first_process():
                    finished["saved"] = running.save()
                    planned.ledger.write(finished)
    except Exception as error:
        failed = {**record, "error": describe_error(error)}
        with contextlib.suppress(OSError):
            if is_first_process():
                planned.ledger.write(failed)
        tracker.finish(failed)
        raise
    tracker.finish(finished)
    if is_first_process():
        _state_path(planned).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            planned.scratch.rmdir()
    return finished


def build_task(experiment: Experiment, config: RunConfig) -> tuple[Task, torch.device]:
    """Builds a run's task, not yet adapted, and says on which device it is to be trained or scored.

    Args:
        experiment: The experiment.
        config: The run's configuration; its seed decides what the task draws.
    """
    device = pick_device(config.device)
    seed_global(config.seed, "initialisation")
    return experiment.build_task(config), device


def opening(planned: PlannedRun) -> dict[str, Any]:
    """What is known of a record before the run begins; as it stands, the record of a failed run."""
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "run_id": planned.run_id,
        "experiment": planned.experiment.name,
        "status": "failed",
        "error": None,
        "earlier_errors": errors_of(planned.record),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": planned.identity.recorded(),
        "config": planned.recorded,
        "learning_rate": planned.learning_rate.recorded(),
        "provenance": provenance(),
    }


def score_section(scores: dict[str, Score], test_sets: Sequence[str]) -> dict[str, Any]:
    """The record's section on the test: each set's score, and the mean where no set is missing."""
    complete = set(scores) == set(test_sets) and bool(scores)
    return {
        "test": {
            name: {
                "value": score.value,
                "size": score.size,
                "predictions": _packed(score),
                **({"details": dict(score.details)} if score.details else {}),
            }
            for name, score in scores.items()
        },
        "mean": sum(score.value for score in scores.values()) / len(scores) if complete else None,
    }


def _packed(score: Score) -> dict[str, Any] | None:
    return None if score.predicted is None else encode_predictions(score.predicted, score.labels)


def _state_path(planned: PlannedRun) -> Path:
    return planned.scratch / "state.safetensors"


class _Run:
    """The parts of a run while it goes on."""

    def __init__(self, planned: PlannedRun, tracker: Tracker, on_progress: OnProgress):
        self.planned, self.config = planned, planned.config
        self.tracker, self.on_progress = tracker, on_progress
        self.begun = time.perf_counter()
        self.task, self.device = build_task(planned.experiment, self.config)
        self.original = original_weights(self.task, self.config)
        apply_method(self.task, self.config)
        self.steps = self.config.training.num_steps(self.task.num_examples) if self.config.is_fitted else 0

    def results(self) -> dict[str, Any]:
        """Trains and evaluates; the record's sections on it."""
        solution = None
        with measured(self.device) as training:
            fitted = self._fit() if self.config.is_fitted else FitResult()
            if self.config.adapter.method in self.config.SOLVED:
                with evaluating(self.task.module, self.device):
                    solution = self.task.solve(self.device, self.config.training.precision)
        self._report(phase="evaluate", step=self.steps, loss=fitted.losses[-1] if fitted.losses else None)
        with measured(self.device) as evaluation:
            validation = _last_validation(fitted) if fitted.validation else self._validate()
            tested = self._evaluate_test() if self.config.evaluate.test else {}
        return {
            "data": dict(self.task.data),
            "parameters": parameter_section(self.task),
            "curves": _curves(fitted),
            "solution": solution,
            "scores": {"validation": validation, **score_section(tested, self.task.test_sets)},
            "time": self._times(fitted, training, evaluation),
            "memory": {
                **(training if self.config.is_trained else evaluation).memory(),
                **quantised_bytes(self.task.model),
            },
            "saved": None,  # until the weights are kept, after the record has been written
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
            schedule=training.schedule,
            warmup_steps=training.warmup_steps,
            floor=FLOORS[training.schedule],
            seed=self.config.seed,
            validate_every=self.config.evaluate.every,
            keep_best=training.keep_best,
            workers=pick_workers(self.config.workers, self.device),
            part_learning_rates=dict(self.task.part_learning_rates),
        )
        return fit(
            self.task.module,
            self.task.batches(self.steps * training.accumulate, training.batch_size // training.accumulate),
            settings,
            self.device,
            resume=Resume(_state_path(self.planned), self.planned.run_id, self.config.save.state_seconds),
            on_step=_Speed(training.batch_size, self._report),
            validate=self._validate,
        )

    def _validate(self) -> float:
        with evaluating(self.task.module, self.device):
            return self.task.validate(self.device, self.config.training.precision)

    def _evaluate_test(self) -> dict[str, Score]:
        with evaluating(self.task.module, self.device):
            return self.task.evaluate("test", self.device, self.config.training.precision)

    def _report(self, **event: Any) -> None:
        self.on_progress({"steps": self.steps, "unit": self.planned.experiment.unit, "speed": None, **event})
        if event["phase"] == "train":
            self.tracker.log(event["step"], {"loss": event["loss"], "examples_per_second": event["speed"]})

    def _times(self, fitted: FitResult, training: Measurement, evaluation: Measurement) -> dict[str, Any]:
        examples = self.steps * self.config.training.batch_size
        return {
            "train_seconds": fitted.seconds if self.config.is_fitted else training.seconds,
            "waited_seconds": fitted.waited_seconds,
            "resumed_at_step": fitted.resumed_at,
            "evaluate_seconds": evaluation.seconds,
            "total_seconds": fitted.earlier_seconds + time.perf_counter() - self.begun,
            "examples_per_second": examples / fitted.seconds if fitted.seconds else None,
            "data_examples_per_second": self._data_speed(fitted),
        }

    def _data_speed(self, fitted: FitResult) -> float | None:
        """Examples a second that the workers, or without any this process, prepare while nothing makes them wait."""
        if not fitted.prepare_seconds:
            return None
        examples = self.config.training.batch_size // self.config.training.accumulate
        return examples * max(1, pick_workers(self.config.workers, self.device)) / fitted.prepare_seconds

    def save(self) -> str:
        """Keeps what was trained; the folder, relative to the experiment's results."""
        folder = self.planned.scratch / "weights"
        planned = self.planned
        facts = {"recorded": planned.recorded, "weights": planned.identity.weights}
        save_weights(folder, self.task, self.config, self.original, **facts)
        return str(folder.relative_to(self.planned.ledger.directory))


class _Speed:
    """Turns steps into progress events with examples per second."""

    def __init__(self, batch_size: int, report: Callable[..., None]):
        self.batch_size, self.report = batch_size, report
        self.first, self.started = None, 0.0

    def __call__(self, step: int, loss: float) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first, self.started = step, now
        elapsed = now - self.started
        speed = (step - self.first) * self.batch_size / elapsed if elapsed > 0 else None
        self.report(phase="train", step=step, loss=loss, speed=speed)


def _last_validation(fitted: FitResult) -> float:
    """The validation score of the weights that training ended with."""
    scores = dict(fitted.validation)
    return scores[max(scores) if fitted.best_step is None else fitted.best_step]


def _curves(fitted: FitResult) -> dict[str, list[list[float]]]:
    return {
        "loss": [[step, loss] for step, loss in enumerate(fitted.losses, start=1)],
        "validation": [[step, score] for step, score in fitted.validation],
    }
