"""scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels, here shown at 32 x 32."""

import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from randlora_core.streams import Stream

from .images import ImageSource
from .stored import Identity
from .subsets import ranked_classes

DIGITS_TEST_FRACTION = 0.4
DIGITS_SIZE = 32

DIGITS_SHA256 = "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"
"""SHA-256 of grey values and labels as scikit-learn ships them; any other are not accepted."""


class Digits:
    """The data set, which has no official split.

    A fixed 40 % of each class, chosen by our own random stream, is the test split; with the validation split of
    `carve_validation` the parts are 868 / 210 / 719 images.
    """

    files: ClassVar[dict[str, tuple[Path, ...]]] = {}
    recipe = repr(("digits", 1, DIGITS_SHA256, DIGITS_TEST_FRACTION, DIGITS_SIZE))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    templates = ('a photo of the number: "{}".',)

    def classes(self) -> tuple[str, ...]:
        """Returns the ten digits."""
        return tuple("0123456789")

    def open(self, identity: Identity) -> dict[str, ImageSource]:
        """Reads the images into memory and cuts them into "train" and "test"."""
        from sklearn.datasets import load_digits

        stored = load_digits()
        pixels, labels = np.rint(stored.images * (255 / 16)).astype(np.uint8), stored.target.astype(np.int64)
        found = hashlib.sha256(pixels.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
        if found != DIGITS_SHA256:
            raise ValueError(f"scikit-learn's digits have the SHA-256 {found}; accepted are those of {DIGITS_SHA256}")
        test = np.zeros(len(pixels), dtype=bool)
        for members in ranked_classes(labels, Stream("digits test split")).values():
            test[members[: round(DIGITS_TEST_FRACTION * len(members))]] = True
        return {"train": ArraySource(pixels[~test], labels[~test]), "test": ArraySource(pixels[test], labels[test])}


class ArraySource:
    """Grey images held in memory, shown as RGB at `DIGITS_SIZE`.

    Args:
        pixels: Grey values, uint8, shape (number of images, height, width).
        labels: Class index of every image.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def image(self, index: int) -> Image.Image:
        """Returns image `index` in RGB, enlarged by bicubic interpolation."""
        grey = Image.fromarray(self.pixels[index])
        return grey.resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC).convert("RGB")

    def where(self, index: int) -> str:
        """Says which array entry this is."""
        return f"array entry {index}"
