"""Whole models with random weights as benchmark cases; they are built by `randlora_core.models`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from randlora_core.benchmarking.cases import Case
from randlora_core.models import Backbone, build_backbone
from randlora_core.models.architectures import LANGUAGE_MODELS

LANGUAGE_LENGTH = 256


@dataclass(frozen=True)
class Known:
    """What a case needs to know of a model: a rank of the paper's, tokens of one input row, and the smaller side d."""

    rank: int
    length: int
    smaller: int


KNOWN: dict[str, Known] = {
    "mini_clip": Known(6, 36, 192),
    "clip_vit_b32": Known(6, 50, 768),
    "clip_vit_l14": Known(8, 257, 1024),
    "clip_vit_h14": Known(10, 257, 1280),
    "dinov2_vit_b14": Known(6, 257, 768),
    "qwen2_0_5b": Known(5, LANGUAGE_LENGTH, 896),
    "phi3_mini": Known(20, LANGUAGE_LENGTH, 3072),
    "llama3_8b": Known(30, LANGUAGE_LENGTH, 4096),
}


class _ImageTower(nn.Module):
    """The image tower of a CLIP model alone, as a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)


class _Logits(nn.Module):
    """A language model that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def whole_model(name: str, batch: int, *, half: bool = False) -> Case:
    """The case of one model; arguments as in `randlora_core.benchmarking.cases.model_case`."""
    if name not in KNOWN:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(KNOWN)}")
    known = KNOWN[name]
    return Case(
        name=f"{name} (batch {batch})",
        kind="model",
        build=lambda device: _build(name, device),
        inputs=lambda device: _inputs(name, batch, device),
        targets=_targets(name),
        tokens=batch * known.length,
        smaller=known.smaller,
        rank=known.rank,
        half=half,
        for_peft=name in LANGUAGE_MODELS or name == "dinov2_vit_b14",  # PEFT has no attn.in_proj
    )


def _targets(name: str) -> tuple[str, ...]:
    if name in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[name].targets
    return _shapes(name).default_targets


def _shapes(name: str) -> Backbone:
    """The backbone on the meta device."""
    with torch.device("meta"):
        return build_backbone(name, pretrained=False)


def _build(name: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    if name in LANGUAGE_MODELS:
        model = _Logits(_language_model(name, device))
    else:
        backbone = build_backbone(name, pretrained=False)
        model = _ImageTower(backbone.model) if backbone.kind == "clip" else backbone.model
    return model.to(device).eval().requires_grad_(False)


def _language_model(name: str, device: torch.device) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    entry = LANGUAGE_MODELS[name]
    with device:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(entry.model_type, **entry.sizes))


def _inputs(name: str, batch: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name in LANGUAGE_MODELS:
        vocabulary = LANGUAGE_MODELS[name].sizes["vocab_size"]
        return torch.randint(vocabulary, (batch, LANGUAGE_LENGTH), generator=generator).to(device)
    size = _shapes(name).image_size
    return torch.randn(batch, 3, size, size, generator=generator).to(device)
