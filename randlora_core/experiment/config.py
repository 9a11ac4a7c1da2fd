"""The configuration of a run as a tree of frozen values: strict, and with one line for each thing that is wrong.

Hydra composes the values (`compose`), these classes check them. Defaults stand in the YAML files of `configs/`, with
their explanation; only what some of the files of a group leave out has one here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import Field, model_validator

from randlora_core.adapters import METHODS, make_config
from randlora_core.experiment.peft_tuners import PEFT, check_tuner, tuner_label
from randlora_core.experiment.sections import (
    Names,
    OpenSection,
    Positive,
    PositiveNumber,
    Section,
    free,
    identity_values,
)


class Budget(Section):
    """A number of trainable parameters that a method's rank was solved for.

    Attributes:
        asked: As it was asked for: "loraRANK", or the number.
        parameters: The number asked for.
        trainable: The number at the solved rank; without parameters beside the adapter's, such as a head's.
    """

    asked: str | int
    parameters: int
    trainable: int

    def describe(self) -> str:
        """Asked for and found, in a few words."""
        off = self.trainable / self.parameters - 1
        return f"{self.asked}: {self.parameters:,} parameters; the adapter has {self.trainable:,} ({off:+.1%})"


class AdapterChoice(OpenSection):
    """The method of a run; its further keys are the fields of the method's own configuration.

    Attributes:
        method: A name of `METHODS`, peft, or no adapter: zero_shot, full, or what the experiment solves.
        label: The row's name in tables and figures; null names a tuner of PEFT by its type and settings.
        targets: Modules to adapt, as `inject_adapter` takes them; null for the backbone's own.
        learning_rate: Used where neither the configuration nor a tuning gives one.
        budget: What the rank was solved for, which a command line gives as adapter.budget=lora32 (`budget`).
    """

    method: str
    label: str = free()
    targets: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    learning_rate: PositiveNumber | None = free(default=None)
    budget: Budget | None = free(default=None)

    @model_validator(mode="before")
    @classmethod
    def _names_the_tuner(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("method") == PEFT and values.get("label") is None:
            return {**values, "label": tuner_label(values)}
        return values


class BackboneChoice(OpenSection):
    """A name of `BACKBONES`; its further keys are keyword arguments of the model's builder."""

    name: str


class TrainingConfig(Section):
    """How a model is trained by AdamW.

    Attributes:
        steps: Optimizer steps; null where `epochs` is given.
        epochs: Passes over the training examples, each without replacement; null where `steps` is given.
        batch_size: Examples per optimizer step.
        accumulate: Micro-batches that a step is split into; divides `batch_size`.
        learning_rate: Peak of the schedule; null takes a tuned one, else the preset's.
        rate_from: Overrides that turn this run into the one whose tuned learning rate it takes; null for its own.
        weight_decay: AdamW's, on every trained parameter.
        clip: Largest norm of the gradient; null for no limit.
        schedule: cosine (to 1 % of the peak) or linear (to 0).
        warmup_steps: Steps in which the learning rate rises from 0.
        keep_best: End with the state that was best on the validation split instead of the last one.
        precision: Number format of the products; auto takes bf16 where the hardware multiplies it, else fp32.
    """

    steps: Positive | None
    epochs: Positive | None
    batch_size: Positive
    accumulate: Positive
    learning_rate: PositiveNumber | None
    rate_from: Names | None = free()
    weight_decay: Annotated[float, Field(ge=0)]
    clip: PositiveNumber | None
    schedule: Literal["cosine", "linear"]
    warmup_steps: Annotated[int, Field(ge=0)]
    keep_best: bool
    precision: Literal["auto", "bf16", "fp32"]

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            given = f"training.steps={self.steps} and training.epochs={self.epochs}"
            raise ValueError(f"{given}; accepted: one of them, the other null")
        if self.batch_size % self.accumulate:
            accepted = f"a divisor of training.batch_size={self.batch_size}"
            raise ValueError(f"training.accumulate={self.accumulate}; accepted: {accepted}")
        if self.steps is not None and self.warmup_steps >= self.steps:
            accepted = f"fewer than training.steps={self.steps}"
            raise ValueError(f"training.warmup_steps={self.warmup_steps}; accepted: {accepted}")
        return self

    def num_steps(self, num_examples: int) -> int:
        """Optimizer steps on so many training examples; an epoch's last, smaller batch counts as one.

        Every batch is full all the same, so `epochs` show up to a batch of examples per epoch more than they hold.
        """
        return self.steps if self.steps is not None else self.epochs * -(-num_examples // self.batch_size)


class EvaluateConfig(Section):
    """What is measured after training.

    Attributes:
        test: Score the test sets; false for runs that choose hyper-parameters.
        every: Optimizer steps between validation scores during training; null for one at the end.
        batch_size: Examples per forward pass.
    """

    test: bool = free()
    every: Positive | None = free()
    batch_size: Positive = free()


class PathsConfig(Section):
    """Folders: `data` holds data sets; `results` takes what runs write, null for `results` in the repository."""

    data: str | None
    results: str | None


class SaveConfig(Section):
    """What a run keeps: the trained weights, and a state to resume from every so many seconds of training."""

    adapter: bool
    state_seconds: Annotated[float, Field(ge=0)]


class TrackingConfig(Section):
    """Where curves are sent besides the record."""

    name: Literal["none", "wandb"]
    project: str | None = None
    mode: Literal["online", "offline"] | None = None


class RunConfig(Section):
    """What the runs of every experiment have in common.

    Attributes:
        adapter: The method.
        backbone: The pre-trained model.
        seed: Decides data order, augmentation, initialisation, choice of examples and, by the presets, the bases.
        training: Optimizer, schedule and length.
        evaluate: What is measured.
        paths: Where data and results lie.
        save: What is kept besides the record.
        tracking: Where curves go.
        device: auto takes an accelerator where there is one.
        threads: torch's CPU threads; null leaves torch's choice.
        workers: Processes that prepare examples; null for none on a CPU and up to 8 beside a GPU.
    """

    UNTRAINED: ClassVar[tuple[str, ...]] = ("zero_shot",)
    SOLVED: ClassVar[tuple[str, ...]] = ()
    TRAINING_DATA: ClassVar[tuple[str, ...]] = ()

    adapter: AdapterChoice
    backbone: BackboneChoice
    seed: Annotated[int, Field(ge=0)]
    training: TrainingConfig
    evaluate: EvaluateConfig
    paths: PathsConfig = free()
    save: SaveConfig = free()
    tracking: TrackingConfig = free()
    device: Literal["auto", "cpu", "cuda"] = free()
    threads: Positive | None = free()
    workers: Annotated[int, Field(ge=0)] | None = free()

    @model_validator(mode="after")
    def _spells_out_the_method(self) -> RunConfig:
        if self.training.keep_best and self.evaluate.every is None:
            raise ValueError("training.keep_best=true needs validation scores; accepted: evaluate.every=STEPS with it")
        object.__setattr__(self, "adapter", _checked_adapter(self.adapter, (*self.UNTRAINED, *self.SOLVED, "full")))
        return self

    @property
    def is_adapted(self) -> bool:
        """Whether adapters are injected, this library's or PEFT's."""
        return self.adapter.method in (*METHODS, PEFT)

    @property
    def is_fitted(self) -> bool:
        """Whether the training loop runs; zero-shot trains nothing, and some methods are solved without it."""
        return self.adapter.method not in (*self.UNTRAINED, *self.SOLVED)

    @property
    def is_trained(self) -> bool:
        """Whether anything is trained, by the training loop or without it."""
        return self.adapter.method not in self.UNTRAINED

    @property
    def has_random_weights(self) -> bool:
        """Whether the backbone's weights are drawn from the run's seed instead of being pre-trained."""
        return self.backbone.options.get("pretrained") is False

    @property
    def training_keys(self) -> tuple[str, ...]:
        """The settings that say what is trained on what; pre-trained weights and test sets do not depend on them."""
        return ("adapter", "training", *self.TRAINING_DATA, *(() if self.has_random_weights else ("seed",)))

    def identity(self, learning_rate: float | None) -> dict[str, Any]:
        """The settings that decide the numbers of this run, and no others, as plain nested values.

        Args:
            learning_rate: The learning rate that the run takes, wherever it comes from.
        """
        values = identity_values(self)
        if not self.is_fitted:
            values["training"] = {"precision": self.training.precision}
        else:
            values["training"]["learning_rate"] = learning_rate
            if self.training.keep_best:
                values["training"]["validate_every"] = self.evaluate.every
        if not self.is_trained:
            for key in self.TRAINING_DATA:
                values.pop(key, None)
            if not self.has_random_weights:
                values.pop("seed")
        return values

    def recorded(self, learning_rate: float | None) -> dict[str, Any]:
        """The configuration as the record carries it: all but where and how the run was executed."""
        hidden = ("paths", "save", "tracking", "device", "threads", "workers")
        values = self.model_dump(mode="json", exclude=set(hidden))
        values["training"]["learning_rate"] = learning_rate
        return values


def _checked_adapter(adapter: AdapterChoice, unadapted: Sequence[str]) -> AdapterChoice:
    """The choice with every field of its method spelt out, so that a changed default changes the run's identity.

    A tuner of PEFT has the settings that were given, see `check_tuner`.
    """
    if adapter.method in unadapted:
        given = [*adapter.options, *(["targets"] if adapter.targets is not None else [])]
        if given:
            raise ValueError(f"adapter.{given[0]} has no effect on method {adapter.method!r}, which takes no settings")
        return adapter
    if adapter.method == PEFT:
        options = check_tuner(adapter.options)
    elif adapter.method in METHODS:
        options = _spelt_out(_method_config(adapter))
    else:
        known = ", ".join([*unadapted, *METHODS, PEFT])
        raise ValueError(f"unknown method adapter.method={adapter.method!r}; accepted: {known}")
    own = {name: getattr(adapter, name) for name in AdapterChoice.model_fields}
    return AdapterChoice.model_construct(_fields_set=set(own), **own, **options)


def _method_config(adapter: AdapterChoice) -> Any:
    """The configuration of a method; an error names the setting of the run and not the field alone."""
    try:
        return make_config(adapter.method, **adapter.options)
    except ValueError as error:
        name = re.match(r"\w*", str(error))[0]
        if name not in adapter.options:
            raise
        raise ValueError(f"adapter.{name}={adapter.options[name]!r}: {error}") from None


def _spelt_out(config: Any) -> dict[str, Any]:
    """All settings of a method's configuration; where a field holds numbers with a fraction, 4 is written as 4.0."""
    values, real = config.settings(), _fractional(type(config))
    return {name: float(value) if name in real and type(value) is int else value for name, value in values.items()}


@functools.cache
def _fractional(config_class: type) -> frozenset[str]:
    """The fields that hold numbers with a fraction."""
    hints = get_type_hints(config_class).items()
    return frozenset(name for name, hint in hints if hint is float or float in get_args(hint))
