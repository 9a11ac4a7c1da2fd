"""Images to tensors: evaluation as a function of the image, augmentation as one of image and random stream."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch.utils.data import Dataset

from randlora_core.streams import Stream

from .images import ImageSplit
from .pixels import kept_pixels

if TYPE_CHECKING:
    from torchvision.transforms import InterpolationMode

EvaluationTransform = Callable[[Image.Image], torch.Tensor]
TrainingTransform = Callable[[Image.Image, Stream], torch.Tensor]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of width / height of a random crop."""


def eval_transform(
    image_size: int, mean: Sequence[float], std: Sequence[float], *, interpolation: str = "bicubic"
) -> EvaluationTransform:
    """Makes the evaluation transform of CLIP: the short side resized, the centre cut out, normalised.

    It gives the same bits as `open_clip.image_transform(image_size, is_train=False, ...)`.

    Args:
        image_size: Width and height of the result in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        interpolation: One of `INTERPOLATIONS`.

    Returns:
        A torchvision `Compose` from an RGB image to a tensor, float32, shape (3, image_size, image_size).

    Raises:
        ValueError: If the interpolation is unknown or the size is not positive.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    _check(image_size, interpolation)
    resize = Resize(image_size, interpolation=InterpolationMode(interpolation))
    return Compose([resize, CenterCrop(image_size), *_to_tensor(mean, std).transforms])


def training_transform(
    evaluation_transform: EvaluationTransform,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    *,
    crop: float,
    flip: bool,
) -> TrainingTransform:
    """Makes the augmentation of a run.

    Args:
        evaluation_transform: The model's own preprocessing, which a run without random crops trains on.
        image_size: Width and height of a random crop's result in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        interpolation: One of `INTERPOLATIONS`.
        crop: Smallest part of the image's area that a random crop shows, in (0, 1]; 1 for no random crops.
        flip: Whether half of the images are mirrored; not for data sets whose `allow_flip` is False.

    Returns:
        A function (image, stream) -> tensor, float32, shape (3, image_size, image_size); it can be pickled.

    Raises:
        ValueError: If the interpolation is unknown, the size is not positive or `crop` is out of range.
    """
    from torchvision.transforms import InterpolationMode

    if not 0 < crop <= 1:
        raise ValueError(f"crop={crop!r}: accepted are numbers in (0, 1], where 1 means no random crops")
    if crop == 1:
        return WholeImage(evaluation_transform, flip)
    _check(image_size, interpolation)
    return RandomCrop(image_size, InterpolationMode(interpolation), (crop, 1.0), _to_tensor(mean, std), flip)


@dataclass(frozen=True)
class WholeImage:
    """The evaluation transform, then in half of all draws the mirror image.

    Attributes:
        transform: From an image to a tensor.
        flip: Whether there are mirror images.
    """

    transform: EvaluationTransform
    flip: bool

    def __call__(self, image: Image.Image, stream: Stream) -> torch.Tensor:
        """Returns the tensor of an image as the numbers of `stream` augment it."""
        return self.augment(self.transform(image), stream)

    def augment(self, tensor: torch.Tensor, stream: Stream) -> torch.Tensor:
        """Does the random part of it to the tensor that the evaluation transform gives."""
        return _mirrored(tensor, stream) if self.flip else tensor


@dataclass(frozen=True)
class RandomCrop:
    """A random resized crop, then in half of all draws its mirror image, as in the official code.

    These are torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`, except that a stream of our own draws where
    the global generator does there: an image's crop depends on the stream's keys and on nothing else.

    Attributes:
        size: Width and height of the result in pixels.
        mode: How the crop is resized.
        scale: Smallest and largest part of the image's area that a crop shows.
        to_tensor: From the resized image to a tensor.
        flip: Whether there are mirror images.
    """

    size: int
    mode: "InterpolationMode"
    scale: tuple[float, float]
    to_tensor: Callable[[Image.Image], torch.Tensor]
    flip: bool

    def __call__(self, image: Image.Image, stream: Stream) -> torch.Tensor:
        """Returns the tensor of an image as the numbers of `stream` augment it."""
        from torchvision.transforms.v2 import functional

        box = _random_box(*image.size, stream, self.scale)
        tensor = self.to_tensor(functional.resized_crop(image, *box, [self.size, self.size], self.mode))
        return _mirrored(tensor, stream) if self.flip else tensor


class EvaluationSplit(Dataset):
    """A split as tensors.

    Resizing is the same for every run. Where the transform is a torchvision `Compose` that ends in `ToTensor` and
    `Normalize`, the pixels before these two are therefore computed once, kept in the cache folder and mapped into
    memory; the tensors are the same to the bit. They are computed anew for other data, images of the split, transform
    or versions of the libraries.

    Args:
        split: The images.
        transform: The model's evaluation transform, a function of the image alone. All results have one shape.

    Raises:
        ValueError: If an image cannot be decoded; see `ImageSplit.image`.
    """

    def __init__(self, split: ImageSplit, transform: EvaluationTransform) -> None:
        self.split = split
        self.transform = transform
        self.labels = split.labels
        self.pixels = kept_pixels(split, transform)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Returns the image, float32 (3, size, size), and its class index."""
        image = self.transform(self.split.image(index)) if self.pixels is None else self.pixels.tensor(index)
        return image, int(self.labels[index])


class TrainingSplit:
    """A split as augmented tensors; without random crops, they come from the array that evaluation uses.

    Args:
        split: The images.
        transform: From `training_transform`, or any other function (image, stream) -> tensor.

    Raises:
        ValueError: If an image cannot be decoded; see `ImageSplit.image`.
    """

    def __init__(self, split: ImageSplit, transform: TrainingTransform) -> None:
        self.split, self.transform = split, transform
        self.labels = split.labels
        self._whole = EvaluationSplit(split, transform.transform) if isinstance(transform, WholeImage) else None

    def __len__(self) -> int:
        return len(self.split)

    def image(self, index: int, stream: Stream) -> torch.Tensor:
        """Returns image `index` as the numbers of `stream` augment it, float32, shape (3, size, size)."""
        if self._whole is None:
            return self.transform(self.split.image(index), stream)
        return self.transform.augment(self._whole[index][0], stream)


def _mirrored(image: torch.Tensor, stream: Stream) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    return functional.horizontal_flip(image) if stream.integer(2) else image


def _check(image_size: int, interpolation: str) -> None:
    if image_size < 1:
        raise ValueError(f"image_size={image_size!r}: accepted are positive integers")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r}: accepted are {', '.join(INTERPOLATIONS)}")


def _to_tensor(mean: Sequence[float], std: Sequence[float]) -> Callable[[Image.Image], torch.Tensor]:
    from torchvision.transforms import Compose, Normalize, ToTensor

    return Compose([ToTensor(), Normalize(tuple(mean), tuple(std))])


def _random_box(width: int, height: int, stream: Stream, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Draws top, left, height and width of a crop; after ten that do not fit, takes the largest of a wanted shape.

    The rule is that of `torchvision.transforms.RandomResizedCrop.get_params`.
    """
    for _ in range(10):
        area = width * height * stream.uniform(*scale)
        ratio = math.exp(stream.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return stream.integer(height - down + 1), stream.integer(width - across + 1), down, across
    across, down = min(width, round(height * ASPECT_RATIOS[1])), min(height, round(width / ASPECT_RATIOS[0]))
    return (height - down) // 2, (width - across) // 2, down, across
