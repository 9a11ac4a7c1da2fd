"""The paper's models as shapes alone: built on the meta device from their published configurations, no weights, no hub.

Used to count parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from randlora_core.models.language_models import LANGUAGE_MODELS
from randlora_core.models.registry import build_backbone
from randlora_core.models.wheels import WHEELS


@dataclass(frozen=True)
class Architecture:
    """A model without weights and the layers that the paper adapts in it.

    Attributes:
        model: The network, all of it on the meta device.
        targets: Suffixes of the adapted layers.
        vision: Name of the sub-module that is the vision tower of a CLIP model; None for other models.
    """

    model: nn.Module
    targets: tuple[str, ...]
    vision: str | None = None


def _build_backbone(name: str, vision: str | None = None) -> Architecture:
    backbone = build_backbone(name, pretrained=False, device="meta")
    return Architecture(backbone.model, backbone.default_targets, vision)


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "clip_vit_b32": partial(_build_backbone, "clip_vit_b32", "visual"),
    "clip_vit_l14": partial(_build_backbone, "clip_vit_l14", "visual"),
    "clip_vit_h14": partial(_build_backbone, "clip_vit_h14", "visual"),
    "dinov2_vit_b14": partial(_build_backbone, "dinov2_vit_b14"),
    **{name: partial(_build_backbone, name) for name in LANGUAGE_MODELS if name not in WHEELS},
}


def build_architecture(name: str) -> Architecture:
    """Build one of `ARCHITECTURES` on the meta device.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]()
