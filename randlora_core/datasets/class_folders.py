"""Data sets in class folders: one folder per split, in it one folder per class, in it the images."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .arrow import SPLIT_NAMES, load_arrow, require_images, require_splits, sorted_labels
from .images import ImageSource
from .stored import Identity

if TYPE_CHECKING:
    import datasets

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))


class ClassFolders:
    """Folders train/<class>, test/<class> and perhaps validation/<class> (or val, valid) of image files.

    Files that are no images and hidden folders are passed over.

    Args:
        folder: The data set's folder.
        found: The folder of every split, from `split_folders`.
        needed: The splits that must be there.

    Raises:
        ValueError: If a needed split is missing, a class of another split is not in train, or an image lies anywhere
            else than directly in a class folder.
    """

    recipe = "class folders 1"

    def __init__(self, folder: Path, found: Mapping[str, Path], needed: Sequence[str] = ("train", "test")) -> None:
        require_splits(folder, list(found), needed)
        self.folder = folder
        self._classes = sorted_labels(_class_names(found["train"]))
        self.files = {
            f"{split}/{name}": _image_files(path / name) for split, path in found.items() for name in self._classes
        }
        self._splits = tuple(found)
        for path in found.values():
            unknown = sorted(set(_class_names(path)) - set(self._classes))
            if unknown:
                raise ValueError(f"{path}: classes {', '.join(unknown)} are not in the training split")

    def classes(self) -> tuple[str, ...]:
        """Takes the names of the training split's folders, sorted as numbers where all of them are."""
        return self._classes

    def open(self, identity: Identity) -> dict[str, ImageSource]:
        """Lists paths and labels in memory-mapped Arrow files, once, and opens them."""
        import datasets

        files = {
            split: [path for name in self._classes for path in self.files[f"{split}/{name}"]] for split in self._splits
        }
        require_images(self.folder, {split: len(paths) for split, paths in files.items()})
        label = datasets.ClassLabel(names=list(self._classes))
        features = datasets.Features({"image": datasets.Image(decode=False), "label": label})
        options = {"drop_labels": False, "drop_metadata": True}
        tables = load_arrow("imagefolder", self.folder, files, features, identity.content, **options)
        return {split: FolderSource(tables[split]) for split in self._splits}


class FolderSource:
    """The image files of one split, read when asked for.

    Args:
        rows: Memory-mapped rows of path and label.
    """

    def __init__(self, rows: "datasets.Dataset") -> None:
        self.labels = rows.data.column("label").to_numpy().astype(np.int64)
        self._rows = rows

    def image(self, index: int) -> Image.Image:
        """Decodes file `index` to RGB."""
        with Image.open(self.where(index)) as image:
            return image.convert("RGB")

    def where(self, index: int) -> str:
        """Says which file the image is in."""
        return self._rows[index]["image"]["path"]


def split_folders(folder: Path) -> dict[str, Path]:
    """Finds the folder of each split of a data set in class folders."""
    return {SPLIT_NAMES[path.name]: path for path in sorted(folder.iterdir()) if path.name in SPLIT_NAMES}


def _class_names(split: Path) -> list[str]:
    """Lists the class folders of a split, in which all of its images must lie."""
    for path in sorted(split.iterdir()):
        if _is_image(path.name):
            raise ValueError(f"{path} is in no class folder; accepted are images directly in {split}/<class>/")
    return [path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _image_files(folder: Path) -> tuple[Path, ...]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            raise ValueError(f"{entry.path} is a folder in a class folder; accepted are images directly in {folder}")
    return tuple(Path(entry.path) for entry in entries if _is_image(entry.name))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
