"""Pre-trained models by name: `BACKBONES`, `build_backbone` and what a builder returns, `Backbone`."""

from randlora_core.models.backbone import Backbone
from randlora_core.models.registry import BACKBONES, build_backbone

__all__ = ["BACKBONES", "Backbone", "build_backbone"]
