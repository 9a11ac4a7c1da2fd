"""Checkpoints of a fine-tuning: --output_dir/checkpoint-N with the loop's state after step N and what it belongs to."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from randlora_core.experiment.loop.state import Resume, read_progress
from randlora_core.files import atomic_file, read_json

STATE_FILE = "state.safetensors"
RUN_FILE = "run.json"
KEPT = 2
"""Checkpoints that are kept; older ones are deleted when a new one is whole."""


@dataclass(frozen=True)
class Checkpoints(Resume):
    """States of a run in folders checkpoint-N: after every so many steps, after the last one, and where a run stops.

    Attributes:
        path: The output folder.
        key: The run's identity.
        seconds: Infinite, since states are written by the number of steps.
        every: Steps between two states.
        steps: Steps of the run.
        settings: What the run's identity is made of, see `identify`.
    """

    every: int
    steps: int
    settings: Mapping[str, Any]

    def latest(self) -> Path:
        """As in `Resume`: the newest state."""
        return self.place(max(find_checkpoints(self.path), default=0))

    def place(self, step: int) -> Path:
        """As in `Resume`."""
        return self.path / f"checkpoint-{step}" / STATE_FILE

    def is_due_at(self, step: int) -> bool:
        """As in `Resume`."""
        return step % self.every == 0 or step == self.steps

    def on_kept(self, step: int) -> None:
        """Writes what the state belongs to and deletes old checkpoints."""
        with atomic_file(self.place(step).with_name(RUN_FILE)) as part:
            part.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
        for old in sorted(find_checkpoints(self.path))[:-KEPT]:
            shutil.rmtree(self.path / f"checkpoint-{old}")


def find_checkpoints(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder that have both their files, in no order."""
    found = [re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")]
    steps = [int(match[1]) for match in found if match]
    places = {step: folder / f"checkpoint-{step}" for step in steps}
    return [step for step, place in places.items() if all((place / file).is_file() for file in (STATE_FILE, RUN_FILE))]


def identify(settings: Mapping[str, Any]) -> str:
    """The key of a run: a hash of its settings and of its data, which `settings` has a hash of."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_resumable(folder: Path, settings: Mapping[str, Any]) -> int:
    """Gives the step of the newest checkpoint.

    Raises:
        ValueError: There is none, it is damaged, or it belongs to other settings or data (a line for each).
    """
    steps = sorted(find_checkpoints(folder), reverse=True)
    if not steps:
        raise ValueError(f"--resume: {folder} has no checkpoint; accepted: the folder of a run that was stopped")
    damaged: dict[Path, str] = {}
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        try:
            kept = _read_settings(checkpoint)
            break
        except ValueError as error:
            damaged[checkpoint] = str(error)
    if damaged:
        way_on = "start afresh without --resume" if len(damaged) == len(steps) else f"go on from checkpoint-{step}"
        folders = " and ".join(f"the folder {place}" for place in damaged)
        raise ValueError("; ".join([*damaged.values(), f"delete {folders} to {way_on}"]))
    different = [key for key in {**settings, **kept} if settings.get(key) != kept.get(key)]
    if different:
        raise ValueError(
            "\n".join(
                f"--resume: {checkpoint} belongs to a run with {key}={kept.get(key)!r}, not {settings.get(key)!r}"
                for key in different
            )
        )
    return step


def _read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint belongs to.

    Raises:
        ValueError: One of its files is damaged, or they are of different runs.
    """
    settings, progress = read_json(checkpoint / RUN_FILE), read_progress(checkpoint / STATE_FILE)
    if progress.key != identify(settings):
        raise ValueError(f"{checkpoint}: {STATE_FILE} is of another run than {RUN_FILE}")
    return settings
