"""The real images of pre-training, decoded once into memory: photographs with class names, drawings with captions."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STORED_SIZE = 64
NATURAL = ("tiny_imagenet", "cifar100", "cifar10", "imagenette")
HELD_OUT = ("mnist", "gtsrb", "flowers102_part", "food101", "stanford_cars", "caltech101")
# Drawings of Latin letters and digits are left out: those characters are held out of pre-training.
WITH_LATIN = ("alphanum", "keycap")


@dataclass(frozen=True)
class ImageTexts:
    """Images with one name each.

    Attributes:
        images: (count, 64, 64, 3) uint8 RGB.
        names: (count,) index into `vocabulary`.
        vocabulary: The distinct names.
    """

    images: np.ndarray
    names: np.ndarray
    vocabulary: tuple[str, ...]


def read_natural_names(data: Path) -> list[str]:
    """The class names of all photographs, cleaned, in a fixed order without repeats."""
    names = [name for dataset in NATURAL for name in read_class_names(data, dataset)]
    return list(dict.fromkeys(names))


def read_class_names(data: Path, dataset: str, split: str = "train") -> list[str]:
    """The class names in a dataset's Parquet file, cleaned by `clean_name`."""
    import pyarrow.parquet as parquet

    metadata = parquet.read_schema(split_file(data, dataset, split)).metadata[b"huggingface"]
    return [clean_name(name) for name in json.loads(metadata)["info"]["features"]["label"]["names"]]


def clean_name(name: str) -> str:
    """Drop WordNet ids, leading numbers and underscores: `n03028079_church` -> `church`, `074_rose` -> `rose`."""
    return re.sub(r"^(n\d{8}|\d{3})_", "", name).replace("_", " ").strip()


def split_file(data: Path, dataset: str, split: str) -> Path:
    """The Parquet file of one split."""
    return data / "images" / dataset / f"{split}-00000-of-00001.parquet"


def read_split(data: Path, dataset: str, split: str, size: int = STORED_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, size, size, 3) uint8 and labels (count,) of one split; the middle square, scaled to `size`."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(split_file(data, dataset, split))
    images = np.stack([decode_square(row["bytes"], size) for row in table["image"].to_pylist()])
    return images, table["label"].to_numpy()


def decode_square(encoded: bytes, size: int = STORED_SIZE) -> np.ndarray:
    """Decode to the middle square in RGB at `size` pixels; transparency becomes white."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(encoded))
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def read_natural(data: Path) -> ImageTexts:
    """All photographs of the training splits of `NATURAL`; equal class names of two datasets are one name."""
    vocabulary = read_natural_names(data)
    index = {name: position for position, name in enumerate(vocabulary)}
    images, names = [], []
    for dataset in NATURAL:
        pixels, labels = read_split(data, dataset, "train")
        table = np.array([index[name] for name in read_class_names(data, dataset)])
        images.append(pixels)
        names.append(table[labels])
    return ImageTexts(np.concatenate(images), np.concatenate(names), tuple(vocabulary))


def read_emoji_captions(data: Path) -> list[str]:
    """The distinct captions of the drawings that are used, sorted."""
    return sorted({row["caption"] for row in _emoji_rows(data, ["caption"])})


def read_emoji(data: Path) -> ImageTexts:
    """All drawings but those of Latin letters and digits."""
    vocabulary = read_emoji_captions(data)
    index = {name: position for position, name in enumerate(vocabulary)}
    rows = _emoji_rows(data, ["image", "caption"])
    images = np.stack([decode_square(row["image"]["bytes"]) for row in rows])
    return ImageTexts(images, np.array([index[row["caption"]] for row in rows]), tuple(vocabulary))


def _emoji_rows(data: Path, columns: list[str]) -> list[dict]:
    """The rows of the drawings' table that are used."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(data / "emoji" / "train-00000-of-00001.parquet", columns=[*columns, "subcategory"])
    return [row for row in table.to_pylist() if row["subcategory"] not in WITH_LATIN]
