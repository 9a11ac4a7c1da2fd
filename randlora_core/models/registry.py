"""The table of models and the one function that builds any of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from randlora_core.models.backbone import Backbone
from randlora_core.models.dinov2 import build_dinov2
from randlora_core.models.mini_clip import build_mini_clip
from randlora_core.models.open_clip_models import build_open_clip

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "mini_clip": build_mini_clip,
    "clip_vit_b32": partial(build_open_clip, "clip_vit_b32"),
    "clip_vit_l14": partial(build_open_clip, "clip_vit_l14"),
    "clip_vit_h14": partial(build_open_clip, "clip_vit_h14"),
    "dinov2_vit_b14": build_dinov2,
}


def build_backbone(name: str, *, pretrained: bool = True, **options: Any) -> Backbone:
    """Build the model called `name`.

    Args:
        name: A key of `BACKBONES`.
        pretrained: Load the published weights; False gives random weights.
        options: Passed on to the builder (each says which it takes).

    Raises:
        ValueError: If the name is unknown.
        OSError: If the weights cannot be had.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    return BACKBONES[name](pretrained=pretrained, **options)
