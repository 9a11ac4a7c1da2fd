"""Readers of image data: Parquet files as on the hub, class folders, and scikit-learn's digits."""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .characters import TEMPLATES as CHARACTER_TEMPLATES
from .characters import CharacterSource, class_names
from .images import ImageSource
from .streams import Stream

if TYPE_CHECKING:
    import pyarrow

SPLIT_NAMES = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
"""Accepted beginnings of Parquet file names and names of split folders, and the split each one means."""

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))

DIGITS_TEST_FRACTION = 0.4
DIGITS_SIZE = 32

_SHARD = re.compile(r"^(train|validation|val|valid|test)(?:-(\d+)-of-(\d+).*|-.*)?\.parquet$")


@dataclass(frozen=True)
class StoredData:
    """A data set as it is stored.

    Attributes:
        labels: Stored label of every class, in label order.
        splits: Sources of "train", "test" and, where there is one, "validation".
        names: Names of the classes where the reader knows better ones than the labels.
        templates: Prompts where the reader knows some.
    """

    labels: tuple[str, ...]
    splits: dict[str, ImageSource]
    names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None


class ArraySource:
    """Grey images held in memory, shown as RGB at a larger size.

    Args:
        pixels: Grey values, uint8, shape (number of images, height, width).
        labels: Class index of every image.
        size: Width and height of the images shown.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, size: int) -> None:
        self.pixels = pixels
        self.labels = labels.astype(np.int64)
        self.size = size

    def image(self, index: int) -> Image.Image:
        """Returns image `index` in RGB, enlarged by bicubic interpolation."""
        grey = Image.fromarray(self.pixels[index])
        return grey.resize((self.size, self.size), Image.Resampling.BICUBIC).convert("RGB")

    def where(self, index: int) -> str:
        """Says which array entry this is."""
        return f"array entry {index}"

    def update(self, digest: "hashlib._Hash") -> None:
        """Feeds shape and values."""
        digest.update(repr((self.pixels.shape, self.size)).encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())


class ParquetSource:
    """Encoded images in the rows of Parquet files, held encoded in memory.

    Args:
        files: The shards of one split, in order.
        images: Encoded bytes of all rows.
        labels: Class index of every row.
        rows: Number of rows of each file.
    """

    def __init__(
        self, files: Sequence[Path], images: "pyarrow.ChunkedArray", labels: np.ndarray, rows: Sequence[int]
    ) -> None:
        self.files = tuple(files)
        self.labels = labels
        self._images = images
        self._starts = np.concatenate(([0], np.cumsum(rows)))

    def image(self, index: int) -> Image.Image:
        """Decodes row `index` to RGB."""
        encoded = self._images[index].as_py()
        if encoded is None:
            raise ValueError("the row holds no image bytes")
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")

    def where(self, index: int) -> str:
        """Says which file and row the image is in."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self.files[file]}, row {index - self._starts[file]}"

    def update(self, digest: "hashlib._Hash") -> None:
        """Feeds the encoded bytes of every row, each with its length."""
        for chunk in self._images.chunks:
            for value in chunk:
                encoded = value.as_py() or b""
                digest.update(len(encoded).to_bytes(8, "little"))
                digest.update(encoded)


class FolderSource:
    """Image files in class folders, read when asked for.

    Args:
        files: All image files of a split, in order.
        labels: Class index of every file.
    """

    def __init__(self, files: Sequence[Path], labels: np.ndarray) -> None:
        self.files = tuple(files)
        self.labels = labels

    def image(self, index: int) -> Image.Image:
        """Decodes file `index` to RGB."""
        with Image.open(self.files[index]) as image:
            return image.convert("RGB")

    def where(self, index: int) -> str:
        """Says which file the image is in."""
        return str(self.files[index])

    def update(self, digest: "hashlib._Hash") -> None:
        """Feeds the bytes of every file, each with its length; file names do not matter."""
        for path in self.files:
            encoded = path.read_bytes()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)


def read_digits() -> StoredData:
    """Reads scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels, here shown at 32 x 32.

    The set has no official split. A fixed 40 % of each class, chosen by our own random stream, is the test split; with
    the validation split of `carve_validation` the parts are 868 / 210 / 719 images.
    """
    from sklearn.datasets import load_digits

    stored = load_digits()
    pixels = np.rint(stored.images * (255 / 16)).astype(np.uint8)
    order = np.lexsort((Stream("digits test split").array(len(pixels)), stored.target))
    test = np.zeros(len(pixels), dtype=bool)
    for label in range(10):
        members = order[stored.target[order] == label]
        test[members[: round(DIGITS_TEST_FRACTION * len(members))]] = True
    return StoredData(
        labels=tuple("0123456789"),
        splits={
            "train": ArraySource(pixels[~test], stored.target[~test], DIGITS_SIZE),
            "test": ArraySource(pixels[test], stored.target[test], DIGITS_SIZE),
        },
        names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        templates=('a photo of the number: "{}".',),
    )


def read_characters() -> StoredData:
    """Makes the generated set of distorted characters; see `characters`."""
    return StoredData(
        labels=class_names(),
        splits={split: CharacterSource(split) for split in ("train", "test")},
        names=class_names(),
        templates=CHARACTER_TEMPLATES,
    )


def read_folder(folder: Path) -> StoredData:
    """Reads a folder of Parquet files (train-*.parquet, also in data/) or of class folders (train/<class>/*.png).

    Args:
        folder: The data set's folder.

    Raises:
        ValueError: If train or test is missing or empty, shards are missing, columns or classes do not fit.
    """
    shards = _parquet_shards(folder)
    return _read_parquet(folder, shards) if shards else _read_class_folders(folder)


def _parquet_shards(folder: Path) -> dict[str, list[Path]]:
    """Finds the Parquet files of each split and checks that no shard is missing."""
    shards: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")]):
        match = _SHARD.match(path.name)
        if match:
            shards.setdefault(SPLIT_NAMES[match[1]], []).append(path)
            total = int(match[3] or 1)
            present = list(path.parent.glob(f"{match[1]}-*-of-{match[3]}*.parquet")) if match[3] else [path]
            if len(present) != total:
                raise ValueError(f"{folder}: {len(present)} of the {total} shards of {match[1]!r} are there")
    return shards


def _require_splits(folder: Path, found: Sequence[str]) -> None:
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)} split (found: {', '.join(sorted(found)) or 'none'}); accepted "
            "are train-*.parquet and test-*.parquet, or folders train/<class>/ and test/<class>/ with images"
        )


def _read_parquet(folder: Path, shards: dict[str, list[Path]]) -> StoredData:
    import pyarrow

    _require_splits(folder, list(shards))
    tables = {split: [_read_table(path) for path in paths] for split, paths in shards.items()}
    classes = _class_labels(shards, tables)
    splits: dict[str, ImageSource] = {}
    for split, parts in tables.items():
        images = pyarrow.chunked_array(
            [chunk for part in parts for chunk in part.images.chunks], type=parts[0].images.type
        )
        stored = [value for part in parts for value in part.labels]
        labels = _label_indices(stored, classes, f"{folder}, split {split!r}")
        splits[split] = ParquetSource(shards[split], images, labels, [len(part.labels) for part in parts])
    return StoredData(classes, splits)


@dataclass(frozen=True)
class _Table:
    images: "pyarrow.ChunkedArray"
    labels: list[int] | list[str]
    names: tuple[str, ...] | None


def _read_table(path: Path) -> _Table:
    """Reads image bytes, labels and, where the hub's metadata has them, class labels of one Parquet file."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        image = _column(path, schema.names, IMAGE_COLUMNS)
        label = _column(path, schema.names, LABEL_COLUMNS)
        table = pyarrow.parquet.read_table(path, columns=[image, label])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    images = table[image]
    if pyarrow.types.is_struct(images.type):
        if images.type.get_field_index("bytes") < 0:
            raise ValueError(f"{path}: column {image!r} holds {images.type}; accepted is a struct with bytes")
        images = pyarrow.compute.struct_field(images, "bytes")
    if not (pyarrow.types.is_binary(images.type) or pyarrow.types.is_large_binary(images.type)):
        raise ValueError(f"{path}: column {image!r} holds {images.type}; accepted are encoded image bytes")
    return _Table(images, table[label].to_pylist(), _metadata_names(schema.metadata, label))


def _column(path: Path, names: Sequence[str], accepted: Sequence[str]) -> str:
    for name in accepted:
        if name in names:
            return name
    raise ValueError(f"{path} has columns {', '.join(names)}; accepted is one of {', '.join(accepted)}")


def _metadata_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """Returns the ClassLabel names that `datasets` writes into the file's metadata."""
    try:
        stored: Any = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = stored.get("info", {}).get("features", {}).get(column, {}).get("names")
    except (ValueError, AttributeError):  # not what `datasets` writes: the labels themselves say the classes
        return None
    return tuple(names) if names else None


def _class_labels(shards: dict[str, list[Path]], tables: dict[str, list[_Table]]) -> tuple[str, ...]:
    """Returns the classes that all files agree on: from the metadata, else from the training labels."""
    first = tables["train"][0].names
    for split, parts in tables.items():
        for path, part in zip(shards[split], parts, strict=True):
            if part.names != first:
                raise ValueError(f"{path} has other class names than {shards['train'][0]}")
    if first is not None:
        return first
    values = {value for part in tables["train"] for value in part.labels if value is not None}
    if all(isinstance(value, int) for value in values):
        return tuple(str(value) for value in range(max(values, default=-1) + 1))
    return _sorted_labels([str(value) for value in values])


def _label_indices(stored: Sequence[int | str | None], classes: tuple[str, ...], where: str) -> np.ndarray:
    index = {name: number for number, name in enumerate(classes)}
    labels = np.empty(len(stored), dtype=np.int64)
    for row, value in enumerate(stored):
        number = index.get(value, -1) if isinstance(value, str) else value
        if number is None or not 0 <= number < len(classes):
            raise ValueError(f"{where}: label {value!r} of row {row} is outside the {len(classes)} classes")
        labels[row] = number
    return labels


def _sorted_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Sorts labels as numbers where all of them are, else as text."""
    numeric = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if numeric else None))


def _read_class_folders(folder: Path) -> StoredData:
    found = {SPLIT_NAMES[path.name]: path for path in sorted(folder.iterdir()) if path.name in SPLIT_NAMES}
    _require_splits(folder, list(found))
    classes = _sorted_labels([path.name for path in found["train"].iterdir() if path.is_dir()])
    splits: dict[str, ImageSource] = {}
    for split, path in found.items():
        unknown = sorted({entry.name for entry in path.iterdir() if entry.is_dir()} - set(classes))
        if unknown:
            raise ValueError(f"{path}: classes {', '.join(unknown)} are not in the training split")
        files, labels = [], []
        for label, name in enumerate(classes):
            members = sorted(file for file in (path / name).glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            files += members
            labels += [label] * len(members)
        splits[split] = FolderSource(files, np.array(labels, dtype=np.int64))
    return StoredData(classes, splits)
