"""Augmentation of a whole batch on tensors: crop, flip, smooth warp and colour, from 64 to 48 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the augmentation.

    Attributes:
        smallest_crop: Smallest share of a photograph's area that a crop keeps.
        colour: Largest relative change of brightness, contrast and saturation.
        warp: Standard deviation of the smooth warp of generated images, as a share of half the image.
    """

    smallest_crop: float = 0.6
    colour: float = 0.25
    warp: float = 0.06


def augment(images: Tensor, natural: Tensor, size: int, ranges: Augmentation, generator: torch.Generator) -> Tensor:
    """Augment a batch.

    Args:
        images: (B, H, W, 3) uint8.
        natural: (B,) bool; only photographs are cropped and flipped, only the others are warped.
        size: Side of the result.
        ranges: How much of everything.
        generator: Source of randomness.

    Returns:
        (B, 3, size, size) float32 in [0, 1].
    """
    pixels = images.permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(_crops(natural, ranges.smallest_crop, generator), [len(images), 3, size, size], False)
    coarse = torch.randn(len(images), 2, 4, 4, generator=generator) * ranges.warp
    field = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    grid = grid + field.permute(0, 2, 3, 1) * (~natural).float()[:, None, None, None]
    return _recolour(F.grid_sample(pixels, grid, padding_mode="border", align_corners=False), ranges.colour, generator)


def _crops(natural: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """(B, 2, 3) maps from output to input coordinates: a random crop and flip for photographs, else a slight zoom."""
    count = len(natural)
    u = torch.rand(5, count, generator=generator)
    area = smallest + (1 - smallest) * u[0]
    aspect = torch.exp((u[1] - 0.5) * 2 * 0.28)
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    zoom = 0.95 + 0.2 * u[0]
    wide, high = torch.where(natural, wide, zoom), torch.where(natural, high, zoom)
    flip = torch.where(natural & (u[2] < 0.5), -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide * flip, high
    theta[:, 0, 2] = (2 * u[3] - 1) * (1 - wide).clamp(min=0)
    theta[:, 1, 2] = (2 * u[4] - 1) * (1 - high).clamp(min=0)
    return theta


def _recolour(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change saturation, contrast and brightness of each image by its own factors."""
    factors = 1 + strength * (2 * torch.rand(3, len(pixels), 1, 1, 1, generator=generator) - 1)
    grey = (pixels * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    pixels = grey + factors[0] * (pixels - grey)
    middle = grey.mean((2, 3), keepdim=True)
    pixels = middle + factors[1] * (pixels - middle)
    return (pixels * factors[2]).clamp(0, 1)
