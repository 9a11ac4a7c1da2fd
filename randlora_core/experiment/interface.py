"""What an experiment supplies to the skeleton: how its inputs are identified, and a task to be trained and scored."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from randlora_core.adapters.layer_kinds import Shape
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.config import RunConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.data import Dataset

Split = Literal["validation", "test"]


class MissingInputError(ValueError):
    """Data or weights that exist, but not on this machine: the run is planned as missing instead of being refused."""


@dataclass(frozen=True)
class Score:
    """How well a model does on one test set.

    Attributes:
        value: The score; higher is better. Accuracies are in [0, 1].
        size: Samples that it is over.
        predicted: Predicted class of every sample, int64 (samples,); None for a score that is not an accuracy.
        labels: True class of every sample, likewise.
        details: Further numbers by name, such as the share of answers that could not be read.
    """

    value: float
    size: int
    predicted: np.ndarray | None = None
    labels: np.ndarray | None = None
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What a run has to compute and to hold, counted from its settings without data and weights.

    Attributes:
        train_flops: Floating-point operations of forward passes over everything that is trained on.
        evaluate_flops: The same for everything that is scored, and for features that are computed once.
        model_bytes: The model's parameters.
        saved_bytes: What autograd keeps of a micro-batch in float32.
        num_examples: Training examples that the run takes, each as often as it takes it.
    """

    train_flops: float
    evaluate_flops: float
    model_bytes: float
    saved_bytes: float
    num_examples: int


class Task(abc.ABC):
    """A model on data: what the skeleton adapts, trains and evaluates.

    Attributes:
        module: Its forward takes a micro-batch (*tensors) and gives (sum of losses, number of terms). Parameters
            outside `model`, such as a classifier's head, are trained by every method.
        model: The pre-trained model inside `module`, which a method freezes, adapts or trains whole.
        default_targets: Modules of `model` that adapters go on where the configuration names none.
        frozen: Names of parameters of `model` that no method trains, full fine-tuning included.
        part_learning_rates: Learning rates of parts of `module` that do not take the run's, by the part's name, such as
            {"head": 1e-3}; they follow the run's schedule.
        num_examples: Training examples; what an epoch consists of.
        data: The record's section on the data: `name`, `sizes` by split, `remarks` for the notes under tables.
        test_sets: Names of all test sets; a mean over fewer is never reported.
        outputs: What the outputs of a trained head stand for, such as class names; empty where there is no such head.
    """

    module: nn.Module
    model: nn.Module
    default_targets: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    part_learning_rates: Mapping[str, float] = MappingProxyType({})
    num_examples: int
    data: Mapping[str, Any]
    test_sets: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    @abc.abstractmethod
    def batches(self, count: int, size: int) -> Dataset:
        """Micro-batches 0 to `count` - 1 of `size` examples, every one a function of its number and the run's seed.

        Args:
            count: Number of micro-batches.
            size: Examples in each.
        """

    @abc.abstractmethod
    def evaluate(self, split: Split, device: torch.device, precision: str) -> dict[str, Score]:
        """Scores the model as it is now on the validation split or on every test set.

        Args:
            split: "validation" or "test".
            device: Where `module` is, in evaluation mode; the skeleton sees to that by `loop.distributed.evaluating`.
            precision: "bf16" or "fp32".
        """

    def validate(self, device: torch.device, precision: str) -> float:
        """The criterion by which hyper-parameters and the best state are chosen; higher is better."""
        scores = self.evaluate("validation", device, precision)
        return sum(score.value for score in scores.values()) / len(scores)

    def solve(self, device: torch.device, precision: str) -> dict[str, Any]:
        """Fits what a method of the configuration's `SOLVED` fits, without the training loop; as `evaluate` is called.

        Returns:
            What the record says of it, such as the chosen strength of a regularisation.
        """
        raise NotImplementedError(f"{type(self).__name__} solves no method")


@dataclass(frozen=True)
class Axis:
    """A setting by which the runs of an experiment differ, beside method and seed.

    Attributes:
        key: The setting's name in the configuration, and its Hydra group where it is one.
        describe: A value in a few words for titles and columns, such as "4 shots"; "" where nothing need be said.
    """

    key: str
    describe: Callable[[Any], str] = str

    def value(self, config: Mapping[str, Any]) -> Any:
        """The axis' value in a recorded configuration; of a group, its name."""
        found = config[self.key]
        return found["name"] if isinstance(found, Mapping) else found


@dataclass(frozen=True)
class Experiment:
    """An experiment as the skeleton knows it.

    All functions are module-level ones, so that an experiment can be sent to a child process.

    Attributes:
        name: Its package, its entry in `configs/` and its folder of results.
        config_class: Its configuration.
        axes: The settings by which its runs differ.
        identify_data: A fingerprint of the data that a configuration names, found without reading them again. It raises
            ValueError for data that do not exist and `MissingInputError` for data that are not here.
        identify_weights: The same for the pre-trained weights, found without building the model.
        build_task: From a configuration to the task, its model pre-trained and not yet adapted.
        adapted_shapes: From a configuration to (out, in) of every layer that adapters go on, by name, found without
            weights and data; None where budgets cannot be solved (`adapter.budget`), nor adapters be checked before a
            run begins.
        unit: What its examples are called in progress lines.
        criterion: What `Task.validate` gives, as tables name it; an accuracy is shown in percent.
        paper_scores: From the experiment and a record to its accuracies in [0, 1] by the paper's names of (model, data
            set); empty where they cannot be compared with the paper's. None for images, where reports have their own.
        count_work: From a configuration to the run's work, None where its settings do not tell; for estimates of time
            and memory.
        preload: Modules that a sweep's server imports once for all runs, beside the skeleton's own.
        configs: The tree of Hydra configurations.
        records: The folder of committed records.
    """

    name: str
    config_class: type[RunConfig]
    axes: tuple[Axis, ...]
    identify_data: Callable[[Any], str]
    identify_weights: Callable[[Any], str]
    build_task: Callable[[Any], Task]
    adapted_shapes: Callable[[Any], Mapping[str, Shape]] | None = None
    unit: str = "examples"
    criterion: str = "accuracy"
    paper_scores: Callable[[Experiment, Mapping[str, Any]], Mapping[tuple[str, str], float]] | None = None
    count_work: Callable[[Any], Work | None] | None = None
    preload: tuple[str, ...] = ()
    configs: Path = CONFIGS
    records: Path | None = None

    @property
    def records_folder(self) -> Path:
        """Where its committed records lie: `records`, or else the folder of that name in its package."""
        return self.records or CONFIGS.parent / self.name / "records"

    def point(self, config: Mapping[str, Any]) -> tuple[Any, ...]:
        """Where a recorded configuration stands on the axes."""
        return tuple(axis.value(config) for axis in self.axes)

    def describe(self, point: tuple[Any, ...]) -> str:
        """A point in a few words, such as "caltech101, 4 shots"."""
        parts = (axis.describe(value) for axis, value in zip(self.axes, point, strict=True))
        return ", ".join(part for part in parts if part)

    def format_criterion(self, value: float) -> str:
        """A validation score as text."""
        return f"{100 * value:.1f} %" if self.criterion == "accuracy" else f"{value:.3f}"


def find_experiment(name: str) -> Experiment:
    """The experiment in a package of this name.

    Raises:
        ValueError: There is none.
    """
    try:
        return importlib.import_module(f"{name}.experiment").EXPERIMENT
    except ModuleNotFoundError as error:
        if error.name not in (name, f"{name}.experiment"):
            raise
        raise ValueError(f"unknown experiment {name!r}; accepted: a package with a module `experiment`") from error
