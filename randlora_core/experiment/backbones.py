"""The pre-trained model of a run: identified when it is planned, built when it begins."""

from __future__ import annotations

from typing import Any

from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import MissingInputError
from randlora_core.models import Backbone, build_backbone, identify_weights


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


def build_run_backbone(config: RunConfig) -> Backbone:
    """A run's pre-trained model, not yet adapted; random weights are drawn from the run's seed.

    Raises:
        ValueError: An unknown backbone or an option that its builder does not take.
        OSError: The weights cannot be had.
    """
    return build_backbone(config.backbone.name, **_options(config))


def _options(config: RunConfig) -> dict[str, Any]:
    return {"seed": config.seed, **config.backbone.options}
