"""Predictions of a model on a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from randlora_core.experiment.training import compute
from randlora_core.models import Backbone
from randlora_core.models.text_tower import encode_text, shorten
from vision_language.objective import ContrastiveObjective, ProbeObjective, similarities

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


def make_classifier(
    objective: nn.Module, tokens: Tensor, device: torch.device, precision: str
) -> Callable[[Tensor], Tensor]:
    """A function from images (B, 3, S, S) to logits (B, classes), by the head or by texts encoded once."""
    if isinstance(objective, ProbeObjective):
        return objective.logits
    model = objective.model
    texts = class_embeddings(model, tokens, device, precision)
    return lambda images: similarities(model.encode_image(images), texts, model.logit_scale)


@torch.no_grad()
def predict(
    objective: ContrastiveObjective | ProbeObjective,
    images: DataLoader,
    tokens: Tensor,
    device: torch.device,
    *,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """The most likely class of every image.

    Args:
        objective: What was trained; it is in evaluation mode meanwhile.
        images: Gives (images, labels).
        tokens: Texts of the classes (templates, classes, context).
        device: Where to compute.
        precision: bf16 or fp32.

    Returns:
        Predicted and true classes, int64, (images,), on the CPU.
    """
    was_training = objective.training
    objective.to(device).eval()
    classify = make_classifier(objective, tokens, device, precision)
    predicted, labels = [], []
    for batch, truth in images:
        with compute(device, precision):
            predicted.append(classify(batch.to(device, non_blocking=True)).argmax(dim=-1))
        labels.append(truth)
    objective.train(was_training)
    return torch.cat(predicted).cpu(), torch.cat(labels)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal classes, in [0, 1]."""
    return float((predicted == labels).double().mean())
