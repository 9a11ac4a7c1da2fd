"""From overrides to runs that are checked and identified, but not begun: no weights are loaded, no data set is read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from randlora_core.experiment.adaptation import check_method
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.identity import Identity, identify_settings, run_id
from randlora_core.experiment.interface import Experiment, MissingInputError
from randlora_core.experiment.loop.hardware import pick_device, pick_precision
from randlora_core.experiment.rates import LearningRate, build_config, choose_rate
from randlora_core.experiment.records.ledger import Ledger
from randlora_core.experiment.records.reading import Record, is_failed, is_finished, label_of

Status = Literal["planned", "done", "failed", "missing"]


@dataclass(frozen=True)
class PlannedRun:
    """A run that has been checked and identified, but not begun.

    Attributes:
        experiment: Whose run it is.
        overrides: What it was planned from.
        config: Its configuration.
        learning_rate: The learning rate it takes, and why.
        identity: What identifies it; data and weights are "" where they are missing.
        is_settled_here: Whether its number format was auto, and so is what this machine multiplies.
        missing: Why it cannot run here; None where it can.
        record: The record found when it was planned, of whatever status, or None.
    """

    experiment: Experiment
    overrides: tuple[str, ...]
    config: RunConfig
    learning_rate: LearningRate
    identity: Identity
    is_settled_here: bool = False
    missing: str | None = None
    record: Record | None = None

    @cached_property
    def run_id(self) -> str:
        """The run's identity in sixteen hexadecimal digits."""
        return run_id(self.identity)

    @property
    def ledger(self) -> Ledger:
        """Where its record belongs."""
        return Ledger(results_folder(self.config) / self.experiment.name)

    @property
    def path(self) -> Path:
        """The file of the run's record."""
        return self.ledger.path(self.run_id)

    @property
    def lock(self) -> Path:
        """The file that the process doing the run locks."""
        return self.ledger.lock(self.run_id)

    @property
    def scratch(self) -> Path:
        """The folder for what the run keeps beside its record: resumable state, trained weights."""
        return self.ledger.scratch(self.run_id)

    @cached_property
    def recorded(self) -> dict[str, Any]:
        """Its configuration as the record carries it."""
        return self.config.recorded(self.learning_rate.value)

    @property
    def label(self) -> str:
        """The name of its row in tables, see `label_of`."""
        return label_of(self.recorded)

    @cached_property
    def point(self) -> tuple[Any, ...]:
        """Where it stands on the experiment's axes."""
        return self.experiment.point(self.recorded)

    @property
    def name(self) -> str:
        """The run in a few words, such as "digits LoRA-16 seed 1"."""
        return f"{self.experiment.describe(self.point)} {self.label} seed {self.config.seed}"

    @property
    def status(self) -> Status:
        """Whether it is done, has failed, cannot run here, or is still to do."""
        if self.missing is not None:
            return "missing"
        if self.finished is not None:
            return "done"
        return "failed" if is_failed(self.record) else "planned"

    @property
    def finished(self) -> Record | None:
        """The record if the run came to its end and left all that is asked for, else None."""
        if self.missing is not None or not is_finished(self.record):
            return None
        lacks_test = self.config.evaluate.test and not self.record["scores"]["test"]
        keeps = self.config.save.adapter and self.config.is_trained
        lacks_weights = keeps and (self.record["saved"] is None or not (self.scratch / "weights").is_dir())
        return None if lacks_test or lacks_weights else self.record


def results_folder(config: RunConfig) -> Path:
    """Where runs write: `paths.results`, or else `results` in the repository, wherever a command is called from."""
    results = config.paths.results
    return CONFIGS.parent / "results" if results is None else Path(results).expanduser()


def prepare_results(planned: PlannedRun) -> None:
    """Makes the folder of a run's records.

    Raises:
        ValueError: It cannot be written.
    """
    folder = planned.ledger.directory
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        place = results_folder(planned.config)
        raise ValueError(f"paths.results={place}: {error.strerror}; accepted: a folder that can be written") from error


def plan_run(experiment: Experiment, overrides: Sequence[str]) -> PlannedRun:
    """Composes, checks and identifies a run.

    Args:
        experiment: The experiment.
        overrides: Hydra overrides of its entry in `configs/`.

    Raises:
        ValueError: A setting, data set, backbone or method that does not exist, does not fit or is not here; an adapter
            that a layer of the backbone does not allow.
    """
    (planned,) = plan_runs(experiment, [overrides])
    if planned.missing is not None:
        raise ValueError(planned.missing)
    return planned


def plan_runs(
    experiment: Experiment, override_lists: Iterable[Sequence[str]], *, inputs_needed: bool = True
) -> list[PlannedRun]:
    """Plans many runs; data and weights that they share are identified once.

    A run whose data, weights or tuned learning rate are not here is planned as missing.

    Args:
        experiment: The experiment.
        override_lists: The overrides of each run.
        inputs_needed: Whether data and weights that do not exist are errors; for tables of committed records they need
            not be here, and neither their names nor adapters are checked.

    Raises:
        ValueError: As `plan_run`, for what does not exist.
    """
    inputs = _Inputs(experiment, inputs_needed)
    return [_plan(experiment, tuple(overrides), inputs) for overrides in override_lists]


class _Inputs:
    """What is asked of data and weights, each asked once; an input that is not here is remembered as such.

    `settings` is what `RunConfig.identity` gives for the configuration.
    """

    def __init__(self, experiment: Experiment, needed: bool):
        self.experiment, self.needed = experiment, needed
        self._found: dict[str, Any] = {}

    def data(self, config: RunConfig, settings: Mapping[str, Any]) -> str:
        """The data's fingerprint; the choice of training examples from a data set is no part of it."""
        return self._ask_once("data", self.experiment.identify_data, config, settings)

    def weights(self, config: RunConfig, settings: Mapping[str, Any]) -> str:
        """The weights' identity; random ones are drawn from the run's seed."""
        return self._ask_once("weights", self.experiment.identify_weights, config, settings)

    def check_adapter(self, config: RunConfig, settings: Mapping[str, Any]) -> None:
        """Checks a run's adapter on the shapes of its layers; where the shapes are not known here, the run checks it.

        Raises:
            ValueError: A layer does not allow it, or a target does not exist.
        """
        if self.needed and config.is_adapted and self.experiment.adapted_shapes is not None:
            kind = f"layers {json.dumps(config.adapter.targets)}"
            with contextlib.suppress(MissingInputError):
                check_method(config, self._ask_once(kind, self.experiment.adapted_shapes, config, settings))

    def _ask_once(
        self, kind: str, ask: Callable[[RunConfig], Any], config: RunConfig, settings: Mapping[str, Any]
    ) -> Any:
        """Asks once for all runs that differ in nothing but method, training, choice of examples and seed."""
        shared = {name: value for name, value in settings.items() if name not in config.training_keys}
        key = f"{kind} {json.dumps(shared, sort_keys=True)} {config.paths.data}"
        if key not in self._found:
            self._found[key] = self._ask(ask, config)
        found = self._found[key]
        if isinstance(found, MissingInputError):
            raise found
        return found

    def _ask(self, ask: Callable[[RunConfig], Any], config: RunConfig) -> Any:
        try:
            return ask(config)
        except MissingInputError as error:
            return error
        except ValueError as error:
            if self.needed:
                raise
            return MissingInputError(str(error))


def _plan(experiment: Experiment, overrides: tuple[str, ...], inputs: _Inputs) -> PlannedRun:
    asked = build_config(experiment, overrides)
    config = settled(asked)
    missing: list[str] = []

    def here(find: Any, otherwise: Any) -> Any:
        try:
            return find()
        except MissingInputError as error:
            missing.append(str(error))
            return otherwise

    rate = here(lambda: choose_rate(experiment, config, overrides), LearningRate(None, "none"))
    settings = config.identity(rate.value)
    inputs.check_adapter(config, settings)
    data = here(lambda: inputs.data(config, settings), "")
    weights = here(lambda: inputs.weights(config, settings), "")
    identity = Identity(**identify_settings(settings, experiment.name), data=data, weights=weights)
    is_open = asked.training.precision == "auto"
    planned = PlannedRun(experiment, overrides, config, rate, identity, is_settled_here=is_open)
    if missing:
        return replace(planned, missing="; ".join(missing))
    return replace(planned, record=planned.ledger.read(planned.run_id))


def settled(config: RunConfig) -> RunConfig:
    """The configuration with the number format that `auto` stands for on this machine."""
    precision = pick_precision(config.training.precision, pick_device(config.device))
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


def each_once(planned: Iterable[PlannedRun]) -> list[PlannedRun]:
    """As `distinct`, with the runs whose inputs are missing; these are told apart by their settings alone."""
    found: dict[tuple[str, str], PlannedRun] = {}
    for entry in planned:
        found.setdefault((entry.experiment.name, entry.identity.settings), entry)
    return list(found.values())


def distinct(planned: Iterable[PlannedRun]) -> list[PlannedRun]:
    """The runs that can run here, each once: settings that make no difference to a run do not make it another one."""
    found: dict[str, PlannedRun] = {}
    for entry in planned:
        if entry.missing is None:
            found.setdefault(entry.run_id, entry)
    return list(found.values())
