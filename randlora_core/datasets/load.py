"""One call from a data set's name to its three splits."""

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .catalog import find_paper_dataset
from .images import ImageData, ImageSource, ImageSplit
from .prompts import readable_names, templates_for
from .readers import StoredData, read_characters, read_digits, read_folder
from .subsets import carve_validation, few_shot, fractional

BUILT_IN: dict[str, Callable[[], StoredData]] = {"digits": read_digits, "characters": read_characters}
"""Data sets that need no files: name and reader. Mirrored digits and letters are other ones, so none may be flipped."""


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    shots: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> ImageData:
    """Loads an image data set and chooses its training images.

    Images are decoded only when asked for, and nothing is written to disk. Files of a validation split are used where
    there are some; otherwise a fixed part of the training images becomes one (`carve_validation`).

    Args:
        name: "digits", "characters", or the name of a folder under `root`.
        root: A folder of data sets, each as Parquet files like on the hub or as class folders.
        shots: Training images per class, or None for all; classes with fewer give all they have.
        fraction: Part of each class's training images in (0, 1], or None for all.
        seed: Seed of the choice that `shots` or `fraction` makes; it changes nothing else.

    Returns:
        The data set.

    Raises:
        ValueError: If the name is unknown, the folder is missing or incomplete, a split lacks a class, both shots and
            fraction are given, or one of them is out of range.
    """
    if shots is not None and fraction is not None:
        raise ValueError(f"shots={shots} and fraction={fraction}: accepted is one of them")
    stored = _read(name, root)
    entry = None if name in BUILT_IN else find_paper_dataset(name)
    names = stored.names or readable_names(stored.labels, entry)
    templates = stored.templates or templates_for(entry)
    splits = _split(name, stored, names)
    whole = len(splits["train"]) + len(splits["validation"])
    sizes_differ = entry is not None and not entry.has_sizes(len(names), whole, len(splits["test"]))
    fingerprint = _fingerprint(stored, names, templates)
    splits["train"], short = _chosen(splits["train"], shots, fraction, seed)
    return ImageData(
        name=name,
        **splits,
        class_names=names,
        templates=templates,
        fingerprint=fingerprint,
        sizes={split: len(images) for split, images in splits.items()},
        short_classes={names[label]: count for label, count in short.items()},
        is_subset=sizes_differ,
        paper_name=entry.paper_name if entry else None,
        allow_flip=entry.allow_flip if entry else name not in BUILT_IN,
    )


def available(root: str | Path | None = None) -> tuple[str, ...]:
    """Returns the names that `load_data` accepts: the built-in sets, then the folders under `root`.

    Args:
        root: A folder of data sets, or None.

    Raises:
        ValueError: If `root` is given but is not a folder.
    """
    if root is None:
        return tuple(BUILT_IN)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"the folder of data sets {str(folder)!r} does not exist; without one: {', '.join(BUILT_IN)}")
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return (*BUILT_IN, *(path for path in folders if path not in BUILT_IN))


def _read(name: str, root: str | Path | None) -> StoredData:
    known = available(root)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        guess = f" (near: {', '.join(near)})" if near else ""
        place = f"in {root}" if root is not None else "without a folder of data sets (root)"
        raise ValueError(f"unknown data set {name!r}{guess}; accepted {place}: {', '.join(known)}")
    return read_folder(Path(root).expanduser() / name)


def _split(name: str, stored: StoredData, names: tuple[str, ...]) -> dict[str, ImageSplit]:
    """Checks every split and cuts the validation part out of the training images where it has no files of its own."""
    for split, source in stored.splits.items():
        _check_classes(name, split, source, names)
    train = stored.splits["train"]
    if "validation" in stored.splits:
        kept = np.arange(len(train.labels))
        validation = stored.splits["validation"]
        held_out = np.arange(len(validation.labels))
    else:
        kept, held_out = carve_validation(train.labels)
        validation = train
    test = stored.splits["test"]
    return {
        "train": ImageSplit(name, "train", train, kept),
        "validation": ImageSplit(name, "validation", validation, held_out),
        "test": ImageSplit(name, "test", test, np.arange(len(test.labels))),
    }


def _check_classes(name: str, split: str, source: ImageSource, names: tuple[str, ...]) -> None:
    if len(source.labels) == 0:
        raise ValueError(f"data set {name!r}: split {split!r} is empty")
    absent = np.flatnonzero(np.bincount(source.labels, minlength=len(names)) == 0)
    if len(absent) and split != "validation":
        shown = ", ".join(repr(names[label]) for label in absent[:5])
        raise ValueError(
            f"data set {name!r}: split {split!r} has no image of {len(absent)} of the {len(names)} classes: {shown}"
            + (", ..." if len(absent) > 5 else "")
        )


def _chosen(
    train: ImageSplit, shots: int | None, fraction: float | None, seed: int
) -> tuple[ImageSplit, dict[int, int]]:
    labels = train.labels.numpy()
    short: dict[int, int] = {}
    if shots is not None:
        positions, short = few_shot(labels, shots, seed)
    elif fraction is not None:
        positions = fractional(labels, fraction, seed)
    else:
        return train, short
    return ImageSplit(train.dataset, train.name, train.source, train.indices[positions]), short


def _fingerprint(stored: StoredData, names: tuple[str, ...], templates: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((names, templates)).encode())
    for split, source in sorted(stored.splits.items()):
        digest.update(f"{split} {len(source.labels)}".encode())
        digest.update(source.labels.astype("<i8").tobytes())
        source.update(digest)
    return digest.hexdigest()
