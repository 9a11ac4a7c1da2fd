"""What every builder of a pre-trained model returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

CLIP_TARGETS = ("attn.in_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Backbone:
    """A model with what is needed to feed it and to adapt it.

    Attributes:
        name: Its name in `BACKBONES`.
        model: The network. Kind "clip" has `encode_image(images)`, `encode_text(tokens)` and `logit_scale`; kind
            "vision" maps images to features (batch, embed_dim).
        kind: "clip" or "vision".
        image_size: Side of the square input in pixels.
        mean: Per-channel mean that the input is normalised with, for RGB in [0, 1].
        std: Per-channel standard deviation, likewise.
        interpolation: "bicubic" or "bilinear": how the model's own preprocessing resizes.
        tokenize: Texts to a LongTensor (texts, context length); None for kind "vision".
        default_targets: Module suffixes that adapters go on unless a config says otherwise.
        embed_dim: Width of the features.
        weights_hash: SHA-256 over the names, types, shapes and bytes of all tensors of the model.
    """

    name: str
    model: nn.Module
    kind: Literal["clip", "vision"]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    tokenize: Callable[[list[str]], Tensor] | None
    default_targets: tuple[str, ...]
    embed_dim: int
    weights_hash: str


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over every tensor of the state dict: name, type, shape and bytes; "meta" for a model without values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            return "meta"
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
