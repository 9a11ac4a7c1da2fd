"""Makes benchmark cases of whole models with random weights, which `randlora_core.models` builds."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from randlora_core.benchmarking.cases import Case, random_input
from randlora_core.models import Backbone, build_backbone
from randlora_core.models.language_models import LANGUAGE_MODELS


@dataclass(frozen=True)
class Known:
    """Holds what a case needs to know of a model.

    Attributes:
        rank: RandLoRA's rank, one of the paper's for this model.
        length: Tokens of one row of the input: an image's patches and class token; of SmolLM2 a short question's.
        smaller: Smaller side d of the adapted layers, which is the width.
        image_size: Side of the images in pixels where it is not the model's usual one.
    """

    rank: int
    length: int
    smaller: int
    image_size: int | None = None


def _language(name: str, rank: int, length: int = 256) -> Known:
    return Known(rank, length, LANGUAGE_MODELS[name].sizes["hidden_size"])


KNOWN: dict[str, Known] = {
    "mini_clip": Known(6, 36, 192),
    "clip_vit_b32": Known(6, 50, 768),
    "clip_vit_l14": Known(8, 257, 1024),
    "clip_vit_h14": Known(10, 257, 1280),
    "dinov2_vit_s14": Known(6, 257, 384),
    "dinov2_vit_b14": Known(6, 257, 768),
    "vit_s14_focus": Known(5, 50, 384, image_size=98),
    "smollm2_135m": _language("smollm2_135m", 10, 40),
    "qwen2_05b": _language("qwen2_05b", 5),
    "phi3_mini": _language("phi3_mini", 20),
    "llama3_8b": _language("llama3_8b", 30),
}
"""The models that can be measured, by the names of `randlora_core.models.BACKBONES`."""


class _ImageTower(nn.Module):
    """Wraps the image tower of a CLIP model as a module of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)


class _Logits(nn.Module):
    """Wraps a language model such that it returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


_WRAPPERS = {"clip": _ImageTower, "causal_lm": _Logits}


def model_case(name: str, batch: int, *, half: bool = False) -> Case:
    """Makes a case of a whole model with random weights.

    Vision models get images (of CLIP it is the image tower), language models tokens.

    Args:
        name: A key of `KNOWN`.
        batch: Rows of the input.
        half: Whether the step runs under bfloat16 autocast.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in KNOWN:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(KNOWN)}")
    known = KNOWN[name]
    return Case(
        name=f"{name} (batch {batch})",
        kind="model",
        build=lambda device: _build(name, device),
        inputs=lambda device: _inputs(name, batch, device),
        targets=_shapes(name).default_targets,
        tokens=batch * known.length,
        smaller=known.smaller,
        rank=known.rank,
        half=half,
        for_peft=name in LANGUAGE_MODELS or name.startswith(("dinov2", "vit_s14")),  # PEFT has no attn.in_proj
    )


@functools.cache
def _shapes(name: str) -> Backbone:
    """The backbone on the meta device, for its sizes alone; it allocates nothing."""
    return _random(name, "meta")


def _random(name: str, device: str) -> Backbone:
    size = KNOWN[name].image_size
    return build_backbone(name, pretrained=False, device=device, **({} if size is None else {"image_size": size}))


def _build(name: str, device: torch.device) -> nn.Module:
    backbone = _random(name, str(device))
    model = _WRAPPERS[backbone.kind](backbone.model) if backbone.kind in _WRAPPERS else backbone.model
    return model.eval().requires_grad_(False)


def _inputs(name: str, batch: int, device: torch.device) -> Tensor:
    if name not in LANGUAGE_MODELS:
        size = _shapes(name).image_size
        return random_input((batch, 3, size, size), device)
    if device.type == "meta":
        return torch.empty(batch, KNOWN[name].length, dtype=torch.long, device=device)
    vocabulary = LANGUAGE_MODELS[name].sizes["vocab_size"]
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (batch, KNOWN[name].length), generator=generator).to(device)
