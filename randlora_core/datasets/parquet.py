"""Data sets in Parquet files as on the hub: encoded images in one column, classes in another."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from randlora_core.errors import one_line

from .arrow import SPLIT_NAMES, load_arrow, require_images, require_splits, sorted_labels
from .images import ImageSource
from .stored import Identity

if TYPE_CHECKING:
    import datasets
    import pyarrow

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")

ROWS_AT_A_TIME = 1000
"""Rows that are copied at once; besides them one row group of the file is in memory (a hundred images on the hub)."""

_SHARD = re.compile(r"^(train|validation|val|valid|test)(?:-(\d+)-of-(\d+).*|-.*)?\.parquet$")


class ParquetFiles:
    """A folder of Parquet files train-*.parquet, test-*.parquet and perhaps validation-*.parquet, also in data/.

    Args:
        folder: The data set's folder.
        files: The shards of every split, from `parquet_shards`.
        needed: The splits that must be there.

    Raises:
        ValueError: If a needed split is missing.
    """

    recipe = "parquet 1"

    def __init__(
        self, folder: Path, files: dict[str, tuple[Path, ...]], needed: Sequence[str] = ("train", "test")
    ) -> None:
        require_splits(folder, list(files), needed)
        self.folder, self.files = folder, files

    def classes(self) -> tuple[str, ...]:
        """Takes the classes from the files' metadata, else from the training labels."""
        columns = self._columns()
        if columns.names is not None:
            return columns.names
        import pyarrow.parquet

        values = set()
        for path in self.files["train"]:
            values.update(pyarrow.parquet.read_table(path, columns=[columns.label])[columns.label].unique().to_pylist())
        return classes_of_values(values, columns.has_integers)

    def open(self, identity: Identity) -> dict[str, ImageSource]:
        """Copies images and labels to memory-mapped Arrow files, once, and opens them."""
        import datasets
        import pyarrow.parquet

        columns = self._columns()
        num_rows = {
            split: [pyarrow.parquet.read_metadata(path).num_rows for path in paths]
            for split, paths in self.files.items()
        }
        require_images(self.folder, {split: sum(counts) for split, counts in num_rows.items()})
        label_type = datasets.Value("int64" if columns.has_integers else "string")
        features = datasets.Features({columns.image: datasets.Image(decode=False), columns.label: label_type})
        options = {"columns": [columns.image, columns.label], "batch_size": ROWS_AT_A_TIME}
        tables = load_arrow("parquet", self.folder, self.files, features, identity.content, **options)
        sources: dict[str, ImageSource] = {}
        for split, paths in self.files.items():
            stored = tables[split].data.column(columns.label)
            labels = label_indices(stored, identity.classes, f"{self.folder}, split {split!r}")
            sources[split] = ParquetSource(tables[split], columns.image, labels, paths, num_rows[split])
        return sources

    def _columns(self) -> "_Columns":
        """Reads the columns of every file and checks that all files agree."""
        paths = [path for split in ("train", "test", "validation") for path in self.files.get(split, ())]
        first = _read_columns(paths[0])
        for path in paths[1:]:
            own = _read_columns(path)
            if str(own) != str(first):
                raise ValueError(f"{path} has columns {own}; accepted are those of {paths[0]}: {first}")
            if own.names != first.names:
                raise ValueError(f"{path} has other class names than {paths[0]}")
        return first


class ParquetSource:
    """The rows of one split; encoded images are read from disk when asked for.

    Args:
        rows: The memory-mapped rows.
        column: Name of the column of images.
        labels: Class index of every row.
        files: The files that the rows came from, in order.
        num_rows: Number of rows of each file.
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        column: str,
        labels: np.ndarray,
        files: Sequence[Path],
        num_rows: Sequence[int],
    ) -> None:
        self.labels = labels
        self._rows, self._column = rows, column
        self._files = tuple(files)
        self._starts = np.concatenate(([0], np.cumsum(num_rows)))

    def image(self, index: int) -> Image.Image:
        """Decodes row `index` to RGB."""
        stored = self._rows[index][self._column]
        if stored is None or stored["bytes"] is None:
            raise ValueError("the row holds no image bytes")
        with Image.open(io.BytesIO(stored["bytes"])) as image:
            return image.convert("RGB")

    def where(self, index: int) -> str:
        """Says which file and row the image is in."""
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._files[file]}, row {index - self._starts[file]}"


def parquet_shards(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Finds the Parquet files of each split.

    Args:
        folder: The data set's folder; its subfolder data/ counts, too.

    Returns:
        The files of each split in the order of their names; empty where the folder has no Parquet files.

    Raises:
        ValueError: If a shard is missing.
    """
    shards: dict[str, tuple[Path, ...]] = {}
    for path in sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")]):
        match = _SHARD.match(path.name)
        if match:
            split = SPLIT_NAMES[match[1]]
            shards[split] = (*shards.get(split, ()), path)
            total = int(match[3] or 1)
            present = list(path.parent.glob(f"{match[1]}-*-of-{match[3]}*.parquet")) if match[3] else [path]
            if len(present) != total:
                raise ValueError(f"{folder}: {len(present)} of the {total} shards of {match[1]!r} are there")
    return shards


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    has_integers: bool
    names: tuple[str, ...] | None

    def __str__(self) -> str:
        return f"{self.image} and {self.label} ({'integers' if self.has_integers else 'text'})"


def _read_columns(path: Path) -> _Columns:
    """Finds the columns of images and labels, and the class names that `datasets` writes into the metadata."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {one_line(error)}") from error
    image, label = _named(path, schema, IMAGE_COLUMNS), _named(path, schema, LABEL_COLUMNS)
    stored = schema.field(image).type
    if pyarrow.types.is_struct(stored) and stored.get_field_index("bytes") < 0:
        raise ValueError(f"{path}: column {image!r} holds {stored}; accepted is a struct with bytes")
    encoded = stored.field("bytes").type if pyarrow.types.is_struct(stored) else stored
    if not (pyarrow.types.is_binary(encoded) or pyarrow.types.is_large_binary(encoded)):
        raise ValueError(f"{path}: column {image!r} holds {stored}; accepted are encoded image bytes")
    kind = schema.field(label).type
    has_integers = pyarrow.types.is_integer(kind)
    if not (has_integers or pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise ValueError(f"{path}: column {label!r} holds {kind}; accepted are integers and text")
    try:
        feature = datasets.Features.from_arrow_schema(schema)[label]
    except (ValueError, TypeError, AttributeError, KeyError):  # metadata that `datasets` did not write says no classes
        feature = None
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return _Columns(image, label, has_integers, names)


def _named(path: Path, schema: "pyarrow.Schema", accepted: Sequence[str]) -> str:
    for name in accepted:
        if name in schema.names:
            return name
    raise ValueError(f"{path} has columns {', '.join(schema.names)}; accepted is one of {', '.join(accepted)}")


def classes_of_values(values: set, has_integers: bool) -> tuple[str, ...]:
    """Names the classes by the values of a label column: numbers from 0 on, or sorted text; None counts for nothing."""
    values = values - {None}
    if has_integers:
        return tuple(str(value) for value in range(max(values, default=-1) + 1))
    return sorted_labels(list(values))


def label_indices(stored: "pyarrow.ChunkedArray", classes: tuple[str, ...], where: str) -> np.ndarray:
    """Turns stored labels, which are numbers or names of classes, into class indices."""
    import pyarrow
    import pyarrow.compute

    is_text = pyarrow.types.is_string(stored.type)
    numbers = pyarrow.compute.index_in(stored, pyarrow.array(classes, pyarrow.string())) if is_text else stored
    labels = numbers.fill_null(-1).to_numpy().astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        row = int(outside[0])
        raise ValueError(f"{where}: label {stored[row].as_py()!r} of row {row} is outside the {len(classes)} classes")
    return labels
