"""What a data set is here: splits of labelled images that are decoded when asked for."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from randlora_core.errors import one_line

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What decoding raises where an image is broken."""


class ImageSource(Protocol):
    """Where the images of a split come from: Parquet rows, files, arrays or a generator.

    Attributes:
        labels: Class index of every image, int64, shape (number of images,).
    """

    labels: np.ndarray

    def image(self, index: int) -> Image.Image:
        """Decodes image `index` to RGB; one of `UNREADABLE` means that it cannot be read."""

    def where(self, index: int) -> str:
        """Says where image `index` is stored, for messages."""


@dataclass(frozen=True)
class ImageSplit:
    """Some images of a source, in a fixed order.

    Attributes:
        dataset: Name of the data set, for messages.
        name: "train", "validation" or "test".
        source: Where the images come from.
        indices: Positions in the source, int64, shape (number of images,).
        fingerprint: The data set's fingerprint, under which resized images are kept; None where there is none.
    """

    dataset: str
    name: str
    source: ImageSource
    indices: np.ndarray
    fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> torch.Tensor:
        """Class index of every image, int64, shape (number of images,)."""
        return torch.from_numpy(self.source.labels[self.indices])

    def image(self, index: int) -> Image.Image:
        """Decodes one image.

        Args:
            index: Position in this split, 0 to len - 1.

        Returns:
            The image in RGB, at its stored size.

        Raises:
            ValueError: If the image cannot be decoded; the message names data set, split, index and file or row.
        """
        position = int(self.indices[index])
        try:
            return self.source.image(position)
        except UNREADABLE as error:
            reason = one_line(error)
            raise ValueError(
                f"unreadable image: data set {self.dataset!r}, split {self.name!r}, index {index} "
                f"({self.source.where(position)}): {reason}"
            ) from error


@dataclass(frozen=True)
class ImageData:
    """A data set ready for an experiment.

    Attributes:
        name: The name it was asked for by; a subset of a published set keeps its own.
        train: The images to train on, after the choice of shots or fraction.
        validation: The images to choose hyper-parameters on; never part of `train`.
        test: The images to report on.
        class_names: Readable name of every class, in label order.
        templates: Prompts with one `{}` for the class name; the first is the one to use where one is needed.
        fingerprint: SHA-256 over the content of all files, class names and templates; it does not depend on shots,
            fraction or seed.
        sizes: Number of images in "train", "validation" and "test".
        short_classes: Classes with fewer than the wanted shots, and how many images each gives; empty without shots.
        is_subset: Whether this is the paper's data set `paper_name` in part or altered: under a name of its own, or
            with other split sizes or classes. Such a set never stands in the paper's row.
        paper_name: The name in the paper's tables, or None where the paper does not use this data set.
        allow_flip: Whether a mirrored image still shows its class (not so for digits, letters and signs).
        left_out: Where the images lie that cannot be read and were left out as asked for, with the reason.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    fingerprint: str
    sizes: dict[str, int]
    short_classes: dict[str, int]
    is_subset: bool
    paper_name: str | None
    allow_flip: bool
    left_out: tuple[str, ...] = ()

    @property
    def chosen(self) -> str:
        """SHA-256 over the positions of the training images, by which two runs can be seen to share them."""
        return hashlib.sha256(self.train.indices.astype("<i8").tobytes()).hexdigest()
