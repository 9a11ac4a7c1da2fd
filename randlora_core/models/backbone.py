"""What every builder of a pre-trained model returns, and how it draws random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

CLIP_TARGETS = ("attn.in_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Backbone:
    """A model with what is needed to feed it and to adapt it.

    Attributes:
        name: Its name in `BACKBONES`.
        model: The network, in eval mode. Kind "clip" has `encode_image(images)`, `encode_text(tokens)` and
            `logit_scale`; kind "vision" maps images to features (batch, embed_dim); kind "causal_lm" is a causal
            language model of transformers.
        kind: "clip", "vision" or "causal_lm".
        default_targets: Module suffixes that adapters go on unless a config says otherwise.
        embed_dim: Width of the features, or of a language model's hidden states.
        image_size: Side of the square input in pixels. None for a language model, as the four fields that follow.
        mean: Per-channel mean that the input is normalised with, for RGB in [0, 1].
        std: Per-channel standard deviation, likewise.
        interpolation: "bicubic" or "bilinear": how the model's own preprocessing resizes.
        image_transform: The model's own evaluation preprocessing, made by the library that the model comes from: an
            RGB PIL image to a float32 tensor (3, image_size, image_size). It can be pickled.
        tokenize: Texts to a LongTensor (texts, context length); kind "clip" only.
        tokenizer: transformers' tokenizer; kind "causal_lm" only, and None there for random weights without a path.
        max_length: Tokens in the longest sequence that a language model takes.
    """

    name: str
    model: nn.Module
    kind: Literal["clip", "vision", "causal_lm"]
    default_targets: tuple[str, ...]
    embed_dim: int
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    image_transform: Callable[[Any], Tensor] | None = None
    tokenize: Callable[[list[str]], Tensor] | None = None
    tokenizer: Any = None
    max_length: int | None = None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws random numbers on the CPU from `seed`; the global random state, that of GPUs included, is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
