"""Curves sent elsewhere while a run goes on. The record is the result; a tracker is a view and never fails a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from randlora_core.experiment.loop.hardware import is_first_process

if TYPE_CHECKING:
    from randlora_core.experiment.planning import PlannedRun


class Tracker(Protocol):
    """Where curves go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes named numbers of an optimiser step."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Takes the record, finished or failed, and closes."""


class NoTracker:
    """Sends nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""


class WandbTracker:
    """Weights & Biases: one run per record, grouped so that the seeds of a configuration collapse into one line."""

    def __init__(self, planned: PlannedRun, directory: str):
        self._run = None
        self._attempt(lambda: self._start(planned, directory))

    def _start(self, planned: PlannedRun, directory: str) -> None:
        import wandb

        choice, config = planned.config.tracking, planned.recorded
        self._where = {axis.key: at for axis, at in zip(planned.experiment.axes, planned.point, strict=True)}
        where = planned.experiment.describe(planned.point)
        group = f"{planned.label}-{where}-{planned.identity.group[:8]}".replace(" ", "_").replace(",", "")
        mode = os.environ.get("WANDB_MODE", choice.mode)  # wandb lets an argument win over it, here a default
        self._run = wandb.init(
            project=choice.project,
            mode=mode,
            id=planned.run_id,
            name=f"{group}-seed{config['seed']}",
            group=group,
            job_type=planned.experiment.name,
            tags=[config["adapter"]["method"], config["backbone"]["name"], where],
            config=config,
            dir=directory,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends named numbers of an optimiser step."""
        if self._run is not None:
            self._attempt(lambda: self._run.log(dict(values), step=step))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Sends the result and closes; a failed record marks the run as failed."""
        if self._run is not None:
            self._attempt(lambda: self._close(record))

    def _close(self, record: Mapping[str, Any]) -> None:
        self._run.summary.update(summary_of(record, self._where))
        self._run.finish(exit_code=0 if record["status"] == "finished" else 1)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Runs an action; its first error ends the tracking with a warning, and the run goes on."""
        try:
            action()
        except Exception as error:
            self._run = None
            print(f"warning: wandb: {type(error).__name__}: {error}; the run goes on without it", file=sys.stderr)


def summary_of(record: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, Any]:
    """A run's summary: what a dashboard groups by, and the numbers that it compares.

    Args:
        record: The record, finished or failed.
        where: The run's values on the experiment's axes by their names.

    Returns:
        `method`, `label`, `rank`, `seed`, the values on the axes, the learning rate; of a finished run the trainable
        parameters, scores in [0, 1], seconds and bytes.
    """
    config, scores = record["config"], record.get("scores") or {}
    adapter = config["adapter"]
    tested = {f"test/{name}": score["value"] for name, score in (scores.get("test") or {}).items()}
    return {
        "method": adapter["method"],
        "label": adapter["label"],
        "rank": adapter.get("rank"),
        "seed": config["seed"],
        **where,
        "learning_rate": config["training"]["learning_rate"],
        "trainable": (record.get("parameters") or {}).get("trainable"),
        "validation": scores.get("validation"),
        "test": scores.get("mean"),
        **tested,
        **(record.get("time") or {}),
        "peak_bytes": (record.get("memory") or {}).get("peak_bytes"),
    }


def make_tracker(planned: PlannedRun, directory: str) -> Tracker:
    """The tracker that a run's configuration names; `directory` takes its files."""
    wanted = planned.config.tracking.name == "wandb" and is_first_process()
    return WandbTracker(planned, directory) if wanted else NoTracker()
