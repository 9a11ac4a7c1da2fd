"""One call from a data set's name to its three splits."""

import difflib
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from .catalog import find_paper_dataset
from .characters import Characters
from .class_folders import ClassFolders
from .digits import Digits
from .images import ImageData, ImageSource, ImageSplit
from .parquet import ParquetFiles, parquet_shards
from .prompts import readable_names, templates_for
from .stored import Identity, StoredData, identify
from .subsets import carve_validation, few_shot, fractional

BUILT_IN: dict[str, type[StoredData]] = {"digits": Digits, "characters": Characters}
"""Data sets that need no files: name and reader. Mirrored digits and letters are other ones, so none may be flipped."""

FOLDER_PREFIX = "folder:"
"""Beginning of a name that means a folder, whatever is built in."""


class MissingDataError(ValueError):
    """The name is right - one of `CATALOG` - but the data set's files are not here."""


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    shots: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> ImageData:
    """Loads an image data set and chooses its training images.

    Images are decoded only when asked for. Files of a validation split are used where there are some; otherwise a fixed
    part of the training images becomes one (`carve_validation`). The first call for a folder copies it to Arrow files
    in the cache folder, which later calls map into memory.

    Args:
        name: "digits", "characters", or the name of a folder under `root`. The two built-in names always mean the
            built-in sets; "folder:digits" means a folder called digits, as "folder:" does before any folder's name.
        root: A folder of data sets, each as Parquet files like on the hub or as class folders.
        shots: Training images per class, or None for all; classes with fewer give all they have.
        fraction: Part of each class's training images in (0, 1], or None for all.
        seed: Seed of the choice that `shots` or `fraction` makes; it changes nothing else.

    Returns:
        The data set.

    Raises:
        MissingDataError: If the data set is in `CATALOG`, but not under `root`.
        ValueError: If the name is unknown, the folder is missing or incomplete, a split lacks a class, both shots and
            fraction are given, or one of them is out of range.
    """
    if shots is not None and fraction is not None:
        raise ValueError(f"shots={shots} and fraction={fraction}: accepted is one of them")
    stored = _find(name, root)
    identity = identify(stored)
    names, templates, fingerprint = _described(name, stored, identity)
    splits = _split(name, stored.open(identity), names, fingerprint)
    entry = None if name in BUILT_IN else find_paper_dataset(name.removeprefix(FOLDER_PREFIX))
    whole = len(splits["train"]) + len(splits["validation"])
    sizes_differ = entry is not None and not entry.has_sizes(len(names), whole, len(splits["test"]))
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


def fingerprint_data(name: str, root: str | Path | None = None) -> str:
    """Identifies a data set without opening it: equal to `load_data(name, root=root).fingerprint`.

    The first call reads all files; later ones, also of other processes, only look at their sizes and modification
    times. That every split has images of every class is checked by `load_data` alone.

    Args:
        name: As for `load_data`.
        root: As for `load_data`.

    Returns:
        64 hexadecimal digits.

    Raises:
        MissingDataError: If the data set is in `CATALOG`, but not under `root`.
        ValueError: If the name is unknown, or the files are incomplete or no data set.
    """
    stored = _find(name, root)
    return _described(name, stored, identify(stored))[2]


def available(root: str | Path | None = None) -> tuple[str, ...]:
    """Returns the names that `load_data` accepts: the built-in sets, then the folders under `root`.

    A folder that is called as a built-in set is listed as "folder:<name>".

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
    return (*BUILT_IN, *(FOLDER_PREFIX + name if name in BUILT_IN else name for name in folders))


def _find(name: str, root: str | Path | None) -> StoredData:
    """Finds the reader of a data set, without reading more than the names of its files."""
    folder_name = name.removeprefix(FOLDER_PREFIX)
    entry = find_paper_dataset(folder_name)
    is_in_catalog = entry is not None and folder_name.lower() in (entry.key, *entry.aliases)
    error_class = MissingDataError if is_in_catalog else ValueError
    try:
        known = available(root)
    except ValueError as error:
        raise error_class(f"data set {name!r}: {error}") from None
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if folder_name not in [listed.removeprefix(FOLDER_PREFIX) for listed in known[len(BUILT_IN) :]]:
        near = difflib.get_close_matches(name, known, n=3)
        guess = f" (near: {', '.join(near)})" if near else ""
        place = f"in {root}" if root is not None else "without a folder of data sets (root)"
        problem = f"the files of data set {name!r} are not here" if is_in_catalog else f"unknown data set {name!r}"
        raise error_class(f"{problem}{guess}; accepted {place}: {', '.join(known)}")
    folder = Path(root).expanduser() / folder_name
    shards = parquet_shards(folder)
    return ParquetFiles(folder, shards) if shards else ClassFolders(folder)


def _described(name: str, stored: StoredData, identity: Identity) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Names the classes, chooses the prompt templates and hashes both together with the content."""
    entry = find_paper_dataset(name.removeprefix(FOLDER_PREFIX))
    names = stored.names or readable_names(identity.classes, entry)
    templates = stored.templates or templates_for(entry)
    return names, templates, hashlib.sha256(repr((identity, names, templates)).encode()).hexdigest()


def _split(
    name: str, sources: dict[str, ImageSource], names: tuple[str, ...], fingerprint: str
) -> dict[str, ImageSplit]:
    """Checks every split and cuts the validation part out of the training images where it has no files of its own."""
    for split, source in sources.items():
        _check_classes(name, split, source, names)
    parts = {split: (source, np.arange(len(source.labels))) for split, source in sources.items()}
    if "validation" not in sources:
        kept, held_out = carve_validation(sources["train"].labels)
        parts.update(train=(sources["train"], kept), validation=(sources["train"], held_out))
    return {split: ImageSplit(name, split, *parts[split], fingerprint) for split in ("train", "validation", "test")}


def _check_classes(name: str, split: str, source: ImageSource, names: tuple[str, ...]) -> None:
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
    return replace(train, indices=train.indices[positions]), short
