"""Pre-trained models by name: `BACKBONES`, `build_backbone`, `identify_weights`, and their result, `Backbone`."""

from randlora_core.models.backbone import Backbone
from randlora_core.models.registry import BACKBONES, build_backbone, identify_weights

__all__ = ["BACKBONES", "Backbone", "build_backbone", "identify_weights"]
