"""Images that were decoded and resized once, kept in the cache folder and mapped into memory."""

import hashlib
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from .arrays import kept_array
from .images import ImageSplit

MAX_ARRAY_BYTES = 2 * 2**30
"""Largest array of resized images that is kept; of larger splits every image is decoded every time."""


class KeptPixels:
    """A kept array of resized images and the steps that make tensors of them; every process maps the file anew.

    Args:
        file: The array, uint8, shape (number of images, height, width, 3).
        to_tensor: From an RGB image to a tensor.
    """

    def __init__(self, file: Path, to_tensor: Callable[[Image.Image], torch.Tensor]) -> None:
        self.file, self.to_tensor = file, to_tensor

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "to_tensor": self.to_tensor}

    @cached_property
    def array(self) -> np.ndarray:
        """The array, mapped into memory."""
        return np.load(self.file, mmap_mode="r")

    def tensor(self, index: int) -> torch.Tensor:
        """Returns image `index` as the whole transform would."""
        return self.to_tensor(Image.fromarray(self.array[index]))


def kept_pixels(split: ImageSplit, transform: Callable[[Image.Image], torch.Tensor]) -> KeptPixels | None:
    """Finds the array of a split's images after all of a transform but `ToTensor` and `Normalize`, or makes it.

    It is named by the data set's fingerprint, the split and its images, and the transform's steps with their settings
    and the versions of their libraries.

    Args:
        split: The images.
        transform: A function of the image alone.

    Returns:
        The array, or None where the transform is no torchvision `Compose` that ends in these two, the split has no
        fingerprint, the array would be larger than `MAX_ARRAY_BYTES` or the cache folder cannot be written.

    Raises:
        ValueError: If an image cannot be decoded, or the transform gives images of several sizes.
    """
    from torchvision.transforms import Compose, Normalize, ToTensor

    steps = transform.transforms if isinstance(transform, Compose) else []
    can_be_cut = len(steps) > 2 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize)
    if not can_be_cut or split.fingerprint is None or len(split) == 0:
        return None
    resize, to_tensor = Compose(steps[:-2]), Compose(steps[-2:])
    recipe = _recipe(resize.transforms)
    first = np.asarray(resize(split.image(0)))
    shape = (len(split), *first.shape)
    if recipe is None or first.dtype != np.uint8 or first.shape[2:] != (3,) or np.prod(shape) > MAX_ARRAY_BYTES:
        return None
    images = hashlib.sha256(repr((split.fingerprint, split.name)).encode() + split.indices.astype("<i8").tobytes())
    name = f"pixels-{hashlib.sha256(images.digest() + recipe).hexdigest()[:32]}"
    file = kept_array(name, shape, lambda index: np.asarray(resize(split.image(index))))
    return None if file is None else KeptPixels(file, to_tensor)


def _recipe(steps: Sequence[Callable[[Image.Image], Image.Image]]) -> bytes | None:
    """Says all that decides what steps do: settings and library versions; None where that cannot be said."""
    versions = {"PIL": PIL.__version__}
    for step in steps:
        package = getattr(step, "__module__", "").partition(".")[0]
        versions[package] = getattr(sys.modules.get(package), "__version__", None)
    try:
        return None if None in versions.values() else pickle.dumps((steps, versions))
    except (pickle.PicklingError, AttributeError, TypeError):  # a function without a name, for example
        return None
