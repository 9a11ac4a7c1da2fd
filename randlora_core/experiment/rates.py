"""A run's learning rate and where it comes from: the command line, a committed tuning, or the method's preset."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from randlora_core.experiment.budget import solve_budget
from randlora_core.experiment.compose import compose
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.identity import identify_settings
from randlora_core.experiment.interface import Experiment, MissingInputError
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.sections import validated
from randlora_core.experiment.sweeps.rate_grid import choose, scores_of


@dataclass(frozen=True)
class LearningRate:
    """A learning rate and where it comes from.

    Attributes:
        value: Peak of the schedule; None where the training loop does not run.
        source: "config" (given for this run), "tuned" (for exactly these settings), "tuned_otherwise" (for those that
            `tuned_for` turns this run into), "preset" (the method's YAML file), or "none".
        tuned_for: The overrides of "tuned_otherwise".
        grid: The tried values with their score on the validation split, where it was tuned.
    """

    value: float | None
    source: Literal["none", "config", "tuned", "tuned_otherwise", "preset"]
    tuned_for: tuple[str, ...] = ()
    grid: tuple[Mapping[str, Any], ...] = ()

    def describe(self) -> str:
        """The learning rate in a few words, for the line that a run prints before it trains."""
        origin = {
            "config": "given",
            "tuned": f"tuned for exactly these settings, {len(self.grid)} values tried",
            "tuned_otherwise": f"tuned for other settings: {' '.join(self.tuned_for)}",
            "preset": "the method's preset, not tuned for these settings",
        }
        return "nothing to choose" if self.value is None else f"{self.value:g} ({origin[self.source]})"

    def recorded(self) -> dict[str, Any]:
        """As the record carries it."""
        return {**asdict(self), "tuned_for": list(self.tuned_for), "grid": [dict(entry) for entry in self.grid]}


def build_config(experiment: Experiment, overrides: Sequence[str], base: Mapping[str, Any] | None = None) -> RunConfig:
    """Composes and checks the configuration that overrides of an experiment's entry mean, a budget's rank solved.

    Args:
        experiment: The experiment.
        overrides: Hydra overrides.
        base: A recorded configuration to start from in place of the entry's defaults.

    Raises:
        ValueError: One line for each thing that is wrong.
    """
    values = compose(experiment.name, overrides, experiment.configs, base)
    asked = values["adapter"].get("budget")
    if asked is None or isinstance(asked, Mapping):  # none, or one that was solved for a recorded run
        return validated(experiment.config_class, values)
    values["adapter"]["budget"] = None
    given = [text.lstrip("+").partition("=")[0] for text in overrides]
    plain = validated(experiment.config_class, values)
    solved, budget = solve_budget(experiment, plain, asked, given)
    values = compose(experiment.name, [*overrides, *solved], experiment.configs, base)  # again: the label has the rank
    values["adapter"]["budget"] = budget.model_dump()
    return validated(experiment.config_class, values)


def choose_rate(experiment: Experiment, config: RunConfig, overrides: Sequence[str]) -> LearningRate:
    """Chooses as the module's first line says, in that order.

    Raises:
        MissingInputError: `training.rate_from` names settings for which nothing has been tuned yet.
        ValueError: There is none: not given, not tuned, and the preset has no default.
    """
    if not config.is_fitted:
        return LearningRate(None, "none")
    if config.training.learning_rate is not None:
        return LearningRate(config.training.learning_rate, "config")
    if (tuned_for := config.training.rate_from) is not None:
        other = build_config(experiment, [*overrides, *tuned_for])
        found = tuned_rate(experiment, other, config.training.precision)
        if found is None:
            settings = " ".join(tuned_for) or "these settings"
            raise MissingInputError(f"no learning rate has been tuned for {settings}; tune it, or give one")
        same = _tuning_digest(experiment, other) == _tuning_digest(experiment, config)
        return LearningRate(found[0], "tuned" if same else "tuned_otherwise", () if same else tuned_for, found[1])
    if (found := tuned_rate(experiment, config, config.training.precision)) is not None:
        return LearningRate(found[0], "tuned", grid=found[1])
    if config.adapter.learning_rate is None:
        label = config.adapter.label
        raise ValueError(f"training.learning_rate=None: {label!r} has no tuned and no preset one; give a number")
    return LearningRate(config.adapter.learning_rate, "preset")


def tuned_rate(
    experiment: Experiment, config: RunConfig, precision: str
) -> tuple[float, tuple[dict[str, Any], ...]] | None:
    """The learning rate that the committed tuning of exactly these settings chooses, and its grid; None without one.

    The seed and the number format are no part of the settings: what was tuned in fp32 serves machines that train in
    bf16. Every file is a tuning of its own, so that comparisons may share a row. Of several tunings those in the number
    format `precision` come first, then the newest.
    """
    found = committed_tunings(experiment.records_folder).get(_tuning_digest(experiment, config), {})
    tunings = {tuning: records for tuning, records in found.items() if choose(scores_of(records)) is not None}
    if not tunings:
        return None
    newest = {tuning: max(record["created"] for record in records) for tuning, records in tunings.items()}
    chosen = max(tunings, key=lambda tuning: (tuning[0] == precision, newest[tuning]))
    scores = scores_of(tunings[chosen])
    return choose(scores), tuple({"value": value, "validation": scores[value]} for value in sorted(scores))


def _tuning_digest(experiment: Experiment, config: RunConfig) -> str:
    return identify_settings(config.identity(None), experiment.name)["tuning"]


def committed_tunings(folder: Path) -> dict[str, dict[tuple[str, Path], list[dict[str, Any]]]]:
    """The committed tuning records by what they tuned, then by number format and file."""
    files = sorted(folder.glob("tuning_*.jsonl"))
    return _read_tunings(tuple((file, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache(maxsize=16)
def _read_tunings(files: tuple[tuple[Path, int], ...]) -> dict[str, dict[tuple[str, Path], list[dict[str, Any]]]]:
    found: dict[str, dict[tuple[str, Path], list[dict[str, Any]]]] = {}
    for file, _ in files:
        for record in read_records(file):
            tuning = (record["config"]["training"]["precision"], file)
            found.setdefault(record["identity"]["tuning"], {}).setdefault(tuning, []).append(record)
    return found
