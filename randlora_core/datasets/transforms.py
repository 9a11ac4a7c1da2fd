"""Images to tensors: deterministic evaluation, and augmentation that depends on (seed, epoch, index) alone."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from .images import ImageSplit
from .streams import Stream

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of width / height of a random crop."""


def train_transform(
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    interpolation: str = "bicubic",
    crop_scale: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
) -> Callable[[Image.Image, Stream], torch.Tensor]:
    """Makes the augmentation of the official code: a random resized crop, a random flip, normalisation.

    Args:
        image_size: Width and height of the result in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        interpolation: One of `INTERPOLATIONS`.
        crop_scale: Smallest and largest part of the image's area that a crop shows, 0 < low <= high <= 1.
        flip: Whether half of the images are mirrored; not for data sets whose `allow_flip` is False.

    Returns:
        A function (image, stream) -> tensor, float32, shape (3, image_size, image_size); it can be pickled.

    Raises:
        ValueError: If the interpolation is unknown, the size is not positive or the scales are out of range.
    """
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"crop_scale={tuple(crop_scale)!r}: accepted are 0 < low <= high <= 1")
    resample = _resample(image_size, interpolation)
    to_tensor = partial(_normalised, mean=tuple(mean), std=tuple(std))
    return partial(_augmented, size=image_size, resample=resample, scale=(low, high), flip=flip, to_tensor=to_tensor)


def eval_transform(
    image_size: int, mean: Sequence[float], std: Sequence[float], *, interpolation: str = "bicubic"
) -> Callable[[Image.Image], torch.Tensor]:
    """Makes the evaluation transform of CLIP: the largest centred square, resized and normalised.

    Args:
        image_size: Width and height of the result in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        interpolation: One of `INTERPOLATIONS`.

    Returns:
        A function image -> tensor, float32, shape (3, image_size, image_size); it can be pickled.

    Raises:
        ValueError: If the interpolation is unknown or the size is not positive.
    """
    resample = _resample(image_size, interpolation)
    return partial(_centred, size=image_size, resample=resample, mean=tuple(mean), std=tuple(std))


class EvaluationSplit(Dataset):
    """A split as tensors.

    Args:
        split: The images.
        transform: A function from `eval_transform`.
    """

    def __init__(self, split: ImageSplit, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.split = split
        self.transform = transform
        self.labels = split.labels

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Returns the image, float32 (3, size, size), and its class index."""
        return self.transform(self.split.image(index)), int(self.labels[index])


def _resample(image_size: int, interpolation: str) -> Image.Resampling:
    if image_size < 1:
        raise ValueError(f"image_size={image_size!r}: accepted are positive integers")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r}: accepted are {', '.join(INTERPOLATIONS)}")
    return INTERPOLATIONS[interpolation]


def _normalised(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    shape = (-1, 1, 1)
    return (pixels / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _centred(
    image: Image.Image, size: int, resample: Image.Resampling, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), resample, box=(left, top, left + side, top + side))
    return _normalised(square, mean, std)


def _augmented(
    image: Image.Image,
    stream: Stream,
    size: int,
    resample: Image.Resampling,
    scale: tuple[float, float],
    flip: bool,
    to_tensor: Callable[[Image.Image], torch.Tensor],
) -> torch.Tensor:
    crop = image.resize((size, size), resample, box=_random_box(image.size, stream, scale))
    if flip and stream.integer(2):
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return to_tensor(crop)


def _random_box(
    image_size: tuple[int, int], stream: Stream, scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Draws a box of random area and shape; after ten that do not fit, takes the largest of the wanted shape."""
    width, height = image_size
    for _ in range(10):
        area = width * height * stream.uniform(*scale)
        ratio = math.exp(stream.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, top = stream.uniform(0, width - across), stream.uniform(0, height - down)
            return left, top, min(width, left + across), min(height, top + down)
    across, down = min(width, height * ASPECT_RATIOS[1]), min(height, width / ASPECT_RATIOS[0])
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
