"""DINOv2 ViT-B/14 (Oquab et al. 2023, https://arxiv.org/abs/2304.07193), through timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from randlora_core.models.backbone import Backbone, hash_weights

ARCHITECTURE = "vit_base_patch14_dinov2.lvd142m"
TARGETS = ("attn.qkv", "mlp.fc1", "mlp.fc2")


def build_dinov2(
    *, pretrained: bool = True, device: str = "cpu", image_size: int = 224, architecture: dict[str, Any] | None = None
) -> Backbone:
    """Build DINOv2 ViT-B/14 without a head: (batch, 3, image_size, image_size) -> (batch, 768).

    Args:
        pretrained: Load the published weights (from the hub or its cache); False gives random weights.
        device: Where to build it; "meta" gives shapes without memory.
        image_size: Side of the input in pixels, a multiple of 14; the position table is resampled to it.
        architecture: timm's keyword arguments that change the architecture (`depth`, `embed_dim`, `num_heads`);
            random weights only.

    Raises:
        ValueError: If pre-trained weights are asked for together with a changed architecture or the meta device, or the
            image size is not a multiple of 14.
        OSError: If the weights cannot be had.
    """
    if image_size % 14 or image_size <= 0:
        raise ValueError(f"dinov2_vit_b14: image_size must be a positive multiple of 14, not {image_size}")
    if pretrained and (architecture or device == "meta"):
        raise ValueError("dinov2_vit_b14: pretrained=True fits neither a changed architecture nor device='meta'")
    model = _create(pretrained, device, image_size, architecture or {}).eval()
    settings = model.pretrained_cfg
    return Backbone(
        name="dinov2_vit_b14",
        model=model,
        kind="vision",
        image_size=image_size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        tokenize=None,
        default_targets=TARGETS,
        embed_dim=model.num_features,
        weights_hash=hash_weights(model),
    )


def _create(pretrained: bool, device: str, image_size: int, architecture: dict[str, Any]) -> nn.Module:
    """The model from timm; whatever goes wrong on the way to the weights becomes one OSError."""
    import timm
    import torch

    try:
        with torch.device(device):
            return timm.create_model(
                ARCHITECTURE, pretrained=pretrained, num_classes=0, img_size=image_size, **architecture
            )
    except Exception as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"dinov2_vit_b14: timm could not get the weights {ARCHITECTURE} ({reason}); "
            "a first use needs the network or a filled hub cache"
        ) from error
