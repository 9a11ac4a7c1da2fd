"""One call from a data set's name to its three splits."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from .decoding import unreadable_images
from .find import BUILT_IN, catalog_entry, find_data, paper_entry, prompts_for
from .find import MissingDataError as MissingDataError  # for those who catch what `load_data` raises
from .images import ImageData, ImageSource, ImageSplit
from .prompts import check_class_order, readable_names
from .splits import JoinedSource, arrange
from .stored import Identity, identify
from .subsets import few_shot, fractional


def load_data(
    name: str,
    *,
    root: str | Path | None = None,
    shots: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    leave_out_unreadable: bool = False,
    download: bool = False,
) -> ImageData:
    """Loads an image data set and chooses its training images.

    Images are decoded when asked for; the first call for some files decodes all of them once, so that a broken image
    is known before anything is trained, and copies a folder to Arrow files in the cache folder, which later calls map
    into memory. `arrange` says which images are for training, validation and test.

    Args:
        name: "digits", "characters", the key of a paper's data set in `CATALOG`, or the name of a folder under `root`.
            The two built-in names always mean the built-in sets; "folder:digits" means a folder called digits, as
            "folder:" does before any folder's name.
        root: A folder of data sets, each as Parquet files like on the hub or as class folders.
        shots: Training images per class, or None for all; classes with fewer give all they have.
        fraction: Part of each class's training images in (0, 1], or None for all.
        seed: Seed of the choice that `shots` or `fraction` makes; it changes nothing else.
        leave_out_unreadable: Do without the images that cannot be decoded; `ImageData.left_out` lists them.
        download: Try the hub, then torchvision, for a paper's data set that is not here.

    Returns:
        The data set.

    Raises:
        MissingDataError: If the data set is one of the paper's, but its files are not here (nor to be had).
        ValueError: If the name is unknown, the folder is incomplete, its class names are permuted, a split lacks a
            class, an image cannot be decoded, both shots and fraction are given, or one of them is out of range.
    """
    if shots is not None and fraction is not None:
        raise ValueError(f"shots={shots} and fraction={fraction}: accepted is one of them")
    stored = find_data(name, root, download=download)
    identity = identify(stored)
    names, templates, fingerprint = _described(name, identity)
    sources = stored.open(identity)
    _check_classes(name, sources, names)
    splits, left_out = _split(name, sources, identity, leave_out_unreadable, fingerprint)
    entry, whole = catalog_entry(name), paper_entry(name)
    sizes = [len(splits[split]) for split in ("train", "validation", "test")]
    is_papers = whole is not None and whole.has_sizes(len(names), *sizes)
    splits["train"], short = _chosen(splits["train"], shots, fraction, seed)
    return ImageData(
        name=name,
        **splits,
        class_names=names,
        templates=templates,
        fingerprint=fingerprint,
        sizes={split: len(images) for split, images in splits.items()},
        short_classes={names[label]: count for label, count in short.items()},
        is_subset=name not in BUILT_IN and entry is not None and not is_papers,
        paper_name=entry.paper_name if entry else None,
        allow_flip=entry.allow_flip if entry else True,
        left_out=left_out,
    )


def fingerprint_data(name: str, root: str | Path | None = None, *, download: bool = False) -> str:
    """Identifies a data set without opening it: equal to `load_data(name, root=root).fingerprint`.

    The first call reads all files; later ones, also of other processes, only look at their sizes and modification
    times. That every split has readable images of every class is checked by `load_data` alone.

    Args:
        name: As for `load_data`.
        root: As for `load_data`.
        download: As for `load_data`.

    Returns:
        64 hexadecimal digits.

    Raises:
        MissingDataError: If the data set is one of the paper's, but its files are not here (nor to be had).
        ValueError: If the name is unknown, the files are incomplete or no data set, or class names are permuted.
    """
    return _described(name, identify(find_data(name, root, download=download)))[2]


def _described(name: str, identity: Identity) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Names the classes, chooses the prompt templates and hashes both, content and wanted sizes together."""
    prompts, whole = prompts_for(name), paper_entry(name)
    try:
        check_class_order(identity.classes, prompts)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from None
    names, templates = readable_names(identity.classes, prompts), prompts.templates
    sizes = ((whole.num_train, whole.num_validation, whole.num_test),) if whole else ()
    return names, templates, hashlib.sha256(repr((identity, names, templates, *sizes)).encode()).hexdigest()


def _check_classes(name: str, sources: dict[str, ImageSource], names: tuple[str, ...]) -> None:
    for split, absent in classes_without_images(sources, len(names)).items():
        shown = ", ".join(repr(names[label]) for label in absent[:5])
        raise ValueError(
            f"data set {name!r}: split {split!r} has no image of {len(absent)} of the {len(names)} classes: {shown}"
            + (", ..." if len(absent) > 5 else "")
        )


def classes_without_images(sources: Mapping[str, ImageSource], num_classes: int) -> dict[str, list[int]]:
    """Lists the classes of which "train" or "test" has no image, for the splits that lack some."""
    absent = {
        split: np.flatnonzero(np.bincount(source.labels, minlength=num_classes) == 0).tolist()
        for split, source in sources.items()
        if split != "validation"
    }
    return {split: labels for split, labels in absent.items() if labels}


def _split(
    name: str, sources: Mapping[str, ImageSource], identity: Identity, leave_out: bool, fingerprint: str
) -> tuple[dict[str, ImageSplit], tuple[str, ...]]:
    """Makes the three splits, and sees to it that all their images can be read."""
    try:
        parts = arrange(sources, paper_entry(name))
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from None
    broken = {} if name in BUILT_IN else unreadable_images(sources, identity)
    splits, left_out, num_images = {}, [], 0
    for split in ("train", "validation", "test"):
        source, positions = parts[split]
        reasons = _reasons(source, sources, broken)
        left_out += [f"{split}: {source.where(at)}: {reasons[at]}" for at in positions.tolist() if at in reasons]
        num_images += len(positions)
        readable = positions[~np.isin(positions, list(reasons))]
        splits[split] = ImageSplit(name, split, source, readable, fingerprint)
    if left_out and not leave_out:
        raise ValueError(
            f"data set {name!r}: {len(left_out)} of {num_images} images cannot be read, the first {left_out[0]}; "
            "accepted are files that can be, or leave_out_unreadable=true to do without these images"
        )
    return splits, tuple(left_out)


def _reasons(
    source: ImageSource, sources: Mapping[str, ImageSource], broken: Mapping[str, Mapping[int, str]]
) -> dict[int, str]:
    """Translates unreadable images of the stored splits to positions in a source that is one or several of them."""
    found, start = {}, 0
    for piece in source.sources if isinstance(source, JoinedSource) else (source,):
        split = next(split for split, stored in sources.items() if stored is piece)
        found.update({start + index: reason for index, reason in broken.get(split, {}).items()})
        start += len(piece.labels)
    return found


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
