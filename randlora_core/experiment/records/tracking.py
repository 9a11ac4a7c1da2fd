"""Curves sent elsewhere while a run goes on. The record is the result; a tracker is a view and never fails a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from randlora_core.experiment.loop.hardware import is_first_process
from randlora_core.experiment.records.reading import label_of

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
    """Weights & Biases.

    Args:
        settings: Arguments of `wandb.init`; `mode` is a default that $WANDB_MODE wins over.
        summarize: From a run's record to the summary that dashboards compare.
    """

    def __init__(self, settings: Mapping[str, Any], summarize: Callable[[Mapping[str, Any]], dict[str, Any]]):
        self._run, self._summarize = None, summarize
        self._attempt(lambda: self._start(settings))

    def _start(self, settings: Mapping[str, Any]) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", settings["mode"])  # wandb lets an argument win over it
        self._run = wandb.init(
            **{**settings, "mode": mode},
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
        self._run.summary.update(self._summarize(record))
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
        "label": label_of(config),
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
    if planned.config.tracking.name != "wandb" or not is_first_process():
        return NoTracker()
    where = {axis.key: at for axis, at in zip(planned.experiment.axes, planned.point, strict=True)}
    return WandbTracker(_describe_run(planned, directory), lambda record: summary_of(record, where))


def _describe_run(planned: PlannedRun, directory: str) -> dict[str, Any]:
    """One run of wandb per record, grouped so that the seeds of a configuration collapse into one line."""
    choice, config = planned.config.tracking, planned.recorded
    where = planned.experiment.describe(planned.point)
    group = f"{planned.label}-{where}-{planned.identity.group[:8]}".replace(" ", "_").replace(",", "")
    return {
        "project": choice.project,
        "mode": choice.mode,
        "id": planned.run_id,
        "name": f"{group}-seed{config['seed']}",
        "group": group,
        "job_type": planned.experiment.name,
        "tags": [config["adapter"]["method"], config["backbone"]["name"], where],
        "config": config,
        "dir": directory,
    }
