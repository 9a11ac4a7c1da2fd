"""Curves sent elsewhere while a run goes on. The record is the result; a tracker is a view and never fails a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from randlora_core.experiment.config import TrackingConfig
from randlora_core.experiment.identity import canonical, group_name


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

    def __init__(self, choice: TrackingConfig, run_id: str, config: Mapping[str, Any], directory: str):
        self._run = None
        self._attempt(lambda: self._start(choice, run_id, config, directory))

    def _start(self, choice: TrackingConfig, run_id: str, config: Mapping[str, Any], directory: str) -> None:
        import wandb

        group = group_name(config)
        mode = os.environ.get("WANDB_MODE", choice.mode)  # wandb lets an argument win over it, here a default
        tags = [config["adapter"]["method"], config["dataset"]["name"], config["backbone"]["name"]]
        self._run = wandb.init(
            project=choice.project,
            mode=mode,
            id=run_id,
            name=f"{group}-seed{config['seed']}",
            group=group,
            tags=tags,
            config=canonical(config),
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
        numbers = {**(record.get("result") or {}), **(record.get("time") or {})}
        self._run.summary.update({"trainable": (record.get("parameters") or {}).get("trainable"), **numbers})
        self._run.finish(exit_code=0 if record["status"] == "finished" else 1)

    def _attempt(self, action: Callable[[], None]) -> None:
        """Runs an action; its first error ends the tracking with a warning, and the run goes on."""
        try:
            action()
        except Exception as error:
            self._run = None
            print(f"warning: wandb: {type(error).__name__}: {error}; the run goes on without it", file=sys.stderr)


def make_tracker(choice: TrackingConfig, run_id: str, config: Mapping[str, Any], directory: str) -> Tracker:
    """The tracker that a configuration names; `directory` takes its files."""
    trackers = {"none": lambda: NoTracker(), "wandb": lambda: WandbTracker(choice, run_id, config, directory)}
    return trackers[choice.name]()
