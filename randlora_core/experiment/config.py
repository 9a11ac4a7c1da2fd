"""Plain nested values to a tree of frozen dataclasses, strictly, and back; the sections every experiment shares."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
REST = {"rest": True}
"""Metadata of the one mapping field of a dataclass that takes the keys no other field names."""


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Builds a dataclass from a mapping, taking nothing that the dataclass does not declare.

    Args:
        cls: A dataclass; fields may be bool, int, float, str, None, Literal, unions of these, tuples, mappings and
            dataclasses. An int is taken for a float, nothing else is converted.
        values: The keys and values.
        where: Dotted path of `values` in the whole configuration, for messages.

    Returns:
        The dataclass.

    Raises:
        ValueError: Unknown or missing key, or a value of the wrong type; names the key and what is accepted.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'configuration'}: {values!r} is not a mapping")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    rest = next((name for name, f in fields.items() if f.metadata.get("rest")), None)
    known = [name for name in fields if name != rest]
    unknown = {key: value for key, value in values.items() if key not in known}
    if unknown and rest is None:
        raise ValueError(f"unknown key {_join(where, next(iter(unknown)))!r}; accepted: {', '.join(known)}")
    hints = typing.get_type_hints(cls)
    built = {key: _convert(hints[key], values[key], _join(where, key)) for key in known if key in values}
    if rest is not None:
        built[rest] = unknown
    required = [name for name in known if _is_required(fields[name]) and name not in built]
    if required:
        raise ValueError(f"missing key {_join(where, required[0])!r}")
    return cls(**built)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a dataclass tree: the inverse of `from_dict`, in the order of the fields."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("rest"):
            values.update(value)
        else:
            values[f.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return values


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    for accepted in typing.get_args(hint) if is_union else (hint,):
        if typing.get_origin(accepted) is tuple and isinstance(value, (list, tuple)):
            element = typing.get_args(accepted)[0]
            return tuple(_convert(element, item, f"{where}[{index}]") for index, item in enumerate(value))
        if _matches(accepted, value):
            return float(value) if accepted is float else value
    raise ValueError(f"{where}={value!r} is not {_describe(hint)}")


def _matches(accepted: Any, value: Any) -> bool:
    if typing.get_origin(accepted) is Literal:
        return value in typing.get_args(accepted)
    if accepted in (None, type(None)):
        return value is None
    if isinstance(value, bool):
        return accepted is bool
    if accepted is float:
        return isinstance(value, (int, float)) and abs(value) < math.inf  # nan is not less than anything
    return isinstance(value, typing.get_origin(accepted) or accepted)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_describe(typing.get_args(hint)[0])}"
    return {type(None): "null", int: "an integer", float: "a finite number", str: "a name", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def require(condition: bool, key: str, value: Any, accepted: str) -> None:
    """Raises a ValueError that names key, value and what is accepted, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key}={value!r} is not {accepted}")


@dataclass(frozen=True)
class AdapterChoice:
    """The method of a run and its settings.

    Attributes:
        method: A name of `METHODS`, or one of the experiments' own (zero_shot, linear_probe, full).
        label: The row's name in tables and figures.
        targets: Modules to adapt, as `inject_adapter` takes them; null for the backbone's own.
        learning_rate: Used where neither the configuration nor the tuned records give one; the paper's, by preset.
        options: The fields of the method's config dataclass.
    """

    method: str
    label: str
    targets: str | tuple[str, ...] | None = None
    learning_rate: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True)
class BackboneChoice:
    """A name of `BACKBONES` and the keyword arguments of its builder."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained: AdamW with a cosine to 1 % of the learning rate, no warm-up.

    Attributes:
        steps: Optimiser steps; null where `epochs` is given.
        epochs: Passes over the training images, each without replacement; null where `steps` is given. See
            `num_steps` for the number of steps.
        batch_size: Images per optimiser step.
        accumulate: Micro-batches a step is split into; divides `batch_size`.
        learning_rate: Peak of the schedule; null takes the tuned one, else the preset's.
        weight_decay: AdamW's, on every trained parameter.
        clip: Largest norm of the gradient; null for no limit.
        precision: Number format of the products, auto for bf16 where the hardware multiplies it and fp32 elsewhere;
            parameters and optimiser state are fp32.
        objective: What an image is contrasted with: the distinct classes of its micro-batch, or all classes.
        crop: Smallest area of the random crops, as a share of the image; 1 for no cropping.
        flip: Mirror half of the images; null does so where the dataset allows it.
    """

    steps: int | None = 20
    epochs: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float | None = None
    weight_decay: float = 0.1
    clip: float | None = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    objective: Literal["in_batch", "class_wise"] = "in_batch"
    crop: float = 1.0
    flip: bool | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.steps, self.epochs) if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"training.steps={self.steps} and training.epochs={self.epochs}: exactly one must be given"
            )
        require(given[0] > 0, "training.steps or training.epochs", given[0], "a positive integer")
        require(self.batch_size > 0, "training.batch_size", self.batch_size, "a positive integer")
        fits = self.accumulate > 0 and self.batch_size % self.accumulate == 0
        require(fits, "training.accumulate", self.accumulate, f"a divisor of training.batch_size={self.batch_size}")
        positive = self.learning_rate is None or self.learning_rate > 0
        require(positive, "training.learning_rate", self.learning_rate, "a positive number or null")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "a number of at least 0")
        require(self.clip is None or self.clip > 0, "training.clip", self.clip, "a positive number or null")
        require(0 < self.crop <= 1, "training.crop", self.crop, "a number in (0, 1]")

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps on `num_images` training images; an epoch's last, smaller batch counts as one.

        Every batch is full all the same, so `epochs` show up to a batch of images per epoch more than they hold.
        """
        return self.steps if self.steps is not None else self.epochs * -(-num_images // self.batch_size)


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured after training.

    Attributes:
        test: Score the test split; false for runs that choose hyper-parameters.
        every: Optimiser steps between validation scores during training; null for one at the end.
        batch_size: Images per forward pass.
    """

    test: bool = True
    every: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        require(self.every is None or self.every > 0, "evaluate.every", self.every, "a positive integer or null")
        require(self.batch_size > 0, "evaluate.batch_size", self.batch_size, "a positive integer")


@dataclass(frozen=True)
class PathsConfig:
    """Folders: `data` holds datasets (null: only those that ship), `results` takes what runs write."""

    data: str | None = None
    results: str = "results"


@dataclass(frozen=True)
class SaveConfig:
    """What a run keeps: the trained weights, and a state to resume from every so many seconds of training."""

    adapter: bool = False
    state_seconds: float = 60.0

    def __post_init__(self) -> None:
        require(self.state_seconds >= 0, "save.state_seconds", self.state_seconds, "a number of at least 0")


@dataclass(frozen=True)
class TrackingConfig:
    """Where curves are sent besides the record."""

    name: Literal["none", "wandb"] = "none"
    project: str = "randlora"
    mode: Literal["online", "offline"] = "online"
