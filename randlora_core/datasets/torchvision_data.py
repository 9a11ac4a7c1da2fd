"""Data sets that torchvision downloads from their authors, and objects cut out of Pascal VOC's photographs."""

import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from randlora_core.errors import one_line
from randlora_core.files import atomic_file, cache_folder

from .catalog import DatasetEntry
from .images import ImageSource
from .stored import Identity

ARCHIVES = (".zip", ".gz", ".tgz", ".tar")
"""Endings of downloaded files that are not read any more once their content lies beside them."""


def fetch_with_torchvision(entry: DatasetEntry) -> None:
    """Downloads and unpacks a data set into the cache folder; an interrupted download is taken up again.

    Args:
        entry: A data set with a `TorchvisionEntry`.

    Raises:
        Exception: Whatever torchvision raises where a file cannot be loaded or has another checksum.
    """
    folder = _folder_of(entry)
    folder.mkdir(parents=True, exist_ok=True)
    for arguments in entry.torchvision.splits.values():
        _build(entry, folder, arguments, download=True)
    with atomic_file(_note_of(entry)) as part:
        part.write_text("complete\n", encoding="utf-8")


def downloaded_with_torchvision(entry: DatasetEntry) -> "TorchvisionData | None":
    """Returns what `fetch_with_torchvision` has downloaded, without using the network; None where nothing is there."""
    try:
        return TorchvisionData(entry, _folder_of(entry)) if _note_of(entry).is_file() else None
    except RuntimeError:  # no home, so no cache folder
        return None


def _folder_of(entry: DatasetEntry) -> Path:
    return cache_folder() / "torchvision" / entry.key


def _note_of(entry: DatasetEntry) -> Path:
    return cache_folder() / "torchvision" / f"{entry.key}.complete"


def _build(entry: DatasetEntry, folder: Path, arguments: Mapping[str, Any], *, download: bool) -> Any:
    """Builds one split as torchvision's class does; a ValueError says which folder it cannot use."""
    import torchvision.datasets

    name = entry.torchvision.name
    try:
        dataset = getattr(torchvision.datasets, name)(str(folder), download=download, **arguments)
    except (RuntimeError, OSError, LookupError) as error:
        reason = f"torchvision's {name} cannot use {folder}: {one_line(error)}"
        raise ValueError(f"{reason}; without this folder, it would be downloaded anew") from error
    return VocObjects(dataset.images, dataset.annotations, entry.class_names) if name == "VOCDetection" else dataset


class TorchvisionData:
    """A data set in the files that torchvision unpacked.

    Args:
        entry: A data set with a `TorchvisionEntry`.
        folder: The `root` of torchvision's class.
    """

    def __init__(self, entry: DatasetEntry, folder: Path) -> None:
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix not in ARCHIVES:
                found.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
        self.files = {group: tuple(paths) for group, paths in found.items()}
        self.recipe = repr(("torchvision", 1, entry.torchvision.name, entry.torchvision.splits))
        self._entry, self._folder = entry, folder

    def classes(self) -> tuple[str, ...]:
        """Takes the classes that torchvision knows, else numbers."""
        train = _build(self._entry, self._folder, self._entry.torchvision.splits["train"], download=False)
        for attribute in ("classes", "categories"):
            if hasattr(train, attribute):
                return tuple(getattr(train, attribute))
        return tuple(str(number) for number in range(int(_labels(train).max()) + 1))

    def open(self, identity: Identity) -> dict[str, ImageSource]:
        """Opens every split; small images are read into memory, others when asked for."""
        splits = self._entry.torchvision.splits
        return {
            split: TorchvisionSource(_build(self._entry, self._folder, arguments, download=False))
            for split, arguments in splits.items()
        }


class TorchvisionSource:
    """The images of one split.

    Args:
        dataset: Gives (PIL image, class index) for every index.
    """

    def __init__(self, dataset: Any) -> None:
        self.labels = _labels(dataset)
        self._dataset = dataset

    def image(self, index: int) -> Image.Image:
        """Decodes image `index` to RGB."""
        return self._dataset[index][0].convert("RGB")

    def where(self, index: int) -> str:
        """Says which item of torchvision's class the image is, and where its files are."""
        return f"{type(self._dataset).__name__}[{index}] in {getattr(self._dataset, 'root', 'its folder')}"


def _labels(dataset: Any) -> np.ndarray:
    """Reads the class index of every image without decoding one; torchvision's classes name them differently."""
    for attribute in ("targets", "labels", "y", "_labels"):
        if hasattr(dataset, attribute):
            return np.asarray(getattr(dataset, attribute), dtype=np.int64)
    return np.array([label for _, label in dataset._samples], dtype=np.int64)


class VocObjects:
    """Every annotated object of Pascal VOC, difficult ones too, cut out by its box and classed by its name.

    Args:
        images: Photographs.
        annotations: The XML file of each.
        classes: The names that objects have there, in label order.
    """

    def __init__(self, images: Sequence[str], annotations: Sequence[str], classes: Sequence[str]) -> None:
        self.root, self.classes = str(Path(images[0]).parent), tuple(classes)
        self.targets: list[int] = []
        self._boxes: list[tuple[str, tuple[int, ...]]] = []
        for image, annotation in zip(images, annotations, strict=True):
            for item in xml.etree.ElementTree.parse(annotation).iter("object"):
                sides = (item.find("bndbox").findtext(side) for side in ("xmin", "ymin", "xmax", "ymax"))
                left, top, right, bottom = (round(float(side)) for side in sides)
                # Pixels are counted from 1, and the last ones belong to the box.
                self._boxes.append((image, (left - 1, top - 1, right, bottom)))
                self.targets.append(self.classes.index(item.findtext("name")))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, box = self._boxes[index]
        with Image.open(path) as image:
            return image.convert("RGB").crop(box), self.targets[index]
