"""The CLIP models of the paper, through open_clip.

B/32 and L/14 are OpenAI's (Radford et al. 2021, https://arxiv.org/abs/2103.00020), H/14 is LAION's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from randlora_core.models.backbone import CLIP_TARGETS, Backbone, seeded
from randlora_core.models.weights import HubWeights, one_line_error


@dataclass(frozen=True)
class OpenClipSource:
    """Where open_clip finds a model: its architecture's name and the tag of its weights."""

    architecture: str
    weights: str


# The "-quickgelu" architectures are the ones OpenAI's weights were trained with.
SOURCES = {
    "clip_vit_b32": OpenClipSource("ViT-B-32-quickgelu", "openai"),
    "clip_vit_l14": OpenClipSource("ViT-L-14-quickgelu", "openai"),
    "clip_vit_h14": OpenClipSource("ViT-H-14", "laion2b_s32b_b79k"),
}


def find_open_clip_weights(name: str) -> HubWeights:
    """Where the weights of one of `SOURCES` come from."""
    import open_clip

    source = SOURCES[name]
    repository = open_clip.get_pretrained_cfg(source.architecture, source.weights)["hf_hub"].rstrip("/")
    return HubWeights(repository, ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))


def build_open_clip(
    name: str,
    *,
    pretrained: bool = True,
    seed: int = 0,
    device: str = "cpu",
    vision_cfg: dict[str, Any] | None = None,
    text_cfg: dict[str, Any] | None = None,
) -> Backbone:
    """Build one of `SOURCES`.

    Args:
        name: A key of `SOURCES`.
        pretrained: Load the published weights (from the hub or its cache); False gives random weights.
        seed: Seed of the random weights.
        device: Where the model goes; "meta" gives shapes without memory.
        vision_cfg: Entries that replace those of open_clip's `vision_cfg`; random weights only.
        text_cfg: Likewise for `text_cfg`.

    Raises:
        ValueError: If pre-trained weights are asked for together with a changed architecture or the meta device.
        OSError: If the weights cannot be had.
    """
    source = SOURCES[name]
    if pretrained and (vision_cfg or text_cfg or device == "meta"):
        raise ValueError(f"{name}: pretrained=True fits neither a changed architecture nor device='meta'")
    with seeded(seed):
        model = _load(name, source) if pretrained else _build(source, device, vision_cfg or {}, text_cfg or {})
    return _describe(name, source, model.to(device).eval())


def _load(name: str, source: OpenClipSource) -> nn.Module:
    """The model with its published weights, in the revision that `identify_weights` names."""
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    weights = find_open_clip_weights(name)
    revision = weights.find_revision()
    with one_line_error(name, "open_clip", weights):
        path = download_pretrained_from_hf(weights.repository, revision=revision)
        return open_clip.create_model(source.architecture, pretrained=path)


def _build(source: OpenClipSource, device: str, vision_cfg: dict[str, Any], text_cfg: dict[str, Any]) -> nn.Module:
    """The architecture with random weights, drawn on the CPU, so that they are the same everywhere."""
    import open_clip
    import torch
    from open_clip.model import CLIP

    config = open_clip.get_model_config(source.architecture)
    with torch.device("meta" if device == "meta" else "cpu"):
        return CLIP(
            config["embed_dim"],
            {**config["vision_cfg"], **vision_cfg},
            {**config["text_cfg"], **text_cfg},
            quick_gelu=config.get("quick_gelu", False),
        )


def _describe(name: str, source: OpenClipSource, model: nn.Module) -> Backbone:
    """Add what open_clip knows about the model's input."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    published = open_clip.get_pretrained_cfg(source.architecture, source.weights)
    settings = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(size=model.visual.image_size), published))
    return Backbone(
        name=name,
        model=model,
        kind="clip",
        default_targets=CLIP_TARGETS,
        embed_dim=model.visual.output_dim,
        image_size=model.visual.image_size[0],
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        interpolation=settings.interpolation,
        image_transform=image_transform_v2(settings, is_train=False),
        tokenize=open_clip.get_tokenizer(source.architecture, context_length=model.context_length),
    )
