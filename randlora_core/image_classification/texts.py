"""The classes of a data set as texts: their tokens, their embeddings, and logits of images over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.experiment.loop.fit import compute
from randlora_core.models import Backbone
from randlora_core.models.text_tower import encode_text, shorten

TEXTS_PER_PASS = 512


def class_tokens(backbone: Backbone, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Tokens of every class in every template.

    Returns:
        (templates, classes, context), the context as short as the longest text allows.
    """
    texts = [template.format(name) for template in templates for name in class_names]
    tokens = shorten(backbone.model, backbone.tokenize(texts))
    return tokens.view(len(templates), len(class_names), -1)


@torch.no_grad()
def class_embeddings(model: nn.Module, tokens: Tensor, device: torch.device, precision: str) -> Tensor:
    """Text features of the classes: normalised per template, averaged over templates, normalised again.

    Args:
        model: CLIP in evaluation mode.
        tokens: (templates, classes, context).
        device: Where the model is.
        precision: bf16 or fp32.

    Returns:
        (classes, features), float32, on the device.
    """
    with compute(device, precision):
        passes = [encode_text(model, part.to(device)) for part in tokens.flatten(0, 1).split(TEXTS_PER_PASS)]
    features = F.normalize(torch.cat(passes).float(), dim=-1)
    return F.normalize(features.view(*tokens.shape[:2], -1).mean(dim=0), dim=-1)


def similarities(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """exp(logit_scale) times cosine similarity, in float32 whatever the autocast.

    Args:
        images: Features (B, E).
        texts: Features (C, E).
        logit_scale: Logarithm of the inverse temperature, a scalar.

    Returns:
        Logits (B, C).
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts = (F.normalize(features.float(), dim=-1) for features in (images, texts))
        return logit_scale.float().exp() * images @ texts.T
