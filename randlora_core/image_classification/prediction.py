"""Predictions of a classifier on a split of images, and their score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from randlora_core.experiment.interface import Score
from randlora_core.experiment.loop.fit import compute

Classifier = Callable[[Tensor], Tensor]
"""From images (B, 3, S, S) to logits (B, classes)."""


@torch.no_grad()
def score_images(classify: Classifier, images: DataLoader, device: torch.device, precision: str) -> Score:
    """The accuracy of the most likely class of every image.

    Args:
        classify: The classifier, its model in evaluation mode and on the device.
        images: Gives (images, labels).
        device: Where to compute.
        precision: "bf16" or "fp32".
    """
    predicted, labels = [], []
    for batch, truth in images:
        with compute(device, precision):
            predicted.append(classify(batch.to(device, non_blocking=True)).argmax(dim=-1))
        labels.append(truth)
    found, expected = torch.cat(predicted).cpu().numpy(), torch.cat(labels).numpy()
    return Score(float((found == expected).mean()), len(expected), found, expected)


@torch.no_grad()
def compute_features(
    encode: Callable[[Tensor], Tensor], images: DataLoader, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    """Features (images, E) float32 and labels (images,) int64 of a split, on the CPU."""
    features, labels = [], []
    for batch, truth in images:
        with compute(device, precision):
            features.append(encode(batch.to(device, non_blocking=True)).float().cpu())
        labels.append(truth)
    return torch.cat(features), torch.cat(labels)
