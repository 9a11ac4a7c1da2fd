"""What is wrong with a data set's files, and how to mend it; nothing is said of what is right."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .decoding import decode_all
from .find import MissingDataError, UnknownDataError, find_data, paper_entry, prompts_for
from .images import ImageSource
from .load import classes_without_images
from .prompts import check_class_order, readable_names
from .splits import arrange
from .stored import identify

SHOWN = 3
"""Images and classes that a finding names before it only counts the others."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a data set.

    Attributes:
        dataset: The data set's name.
        problem: What is wrong.
        remedy: What to do about it.
    """

    dataset: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.dataset}: {self.problem}\n    To mend it, {self.remedy}."


def examine(name: str, root: str | Path | None = None) -> Iterator[Finding]:
    """Examines presence, classes, sizes, every image, and images that training and test share.

    All files are read and all images decoded, whatever an earlier examination or run has seen.

    Args:
        name: As for `load_data`; nothing is downloaded.
        root: A folder of data sets, or None.

    Yields:
        One finding for everything that is wrong; nothing for a clean data set.

    Raises:
        UnknownDataError: The name is unknown.
    """
    try:
        stored = find_data(name, root)
        identity = identify(stored)
        sources = stored.open(identity)
    except UnknownDataError:
        raise
    except MissingDataError as error:
        yield Finding(name, str(error), "get it as docs/datasets.md describes")
    except (ValueError, OSError) as error:
        yield Finding(name, str(error), "correct the files or get them anew as docs/datasets.md describes")
    else:
        yield from _examine_classes(name, identity.classes, sources)
        yield from _examine_sizes(name, len(identity.classes), sources)
        yield from _examine_images(name, sources)


def _examine_classes(name: str, labels: tuple[str, ...], sources: Mapping[str, ImageSource]) -> Iterator[Finding]:
    """Compares names and order with the official ones, and looks for classes without images."""
    prompts, whole = prompts_for(name), paper_entry(name)
    try:
        check_class_order(labels, prompts)
    except ValueError as error:
        yield Finding(name, str(error), "write the class names in the order of the numbers that the images have")
    names = readable_names(labels, prompts)
    official = prompts.names if whole else ()
    if missing := [known for known in official if known not in names]:
        strange = [own for own in names if own not in official]
        unknown = f", and has {_some(strange)} instead" if strange else ""
        yield Finding(
            name,
            f"lacks {len(missing)} of the {len(official)} classes: {_some(missing)}{unknown}",
            "add the images of these classes, or spell their names as CLIP's list does (clip_prompts.json)",
        )
    for split, absent in classes_without_images(sources, len(names)).items():
        empty = _some([names[label] for label in absent])
        yield Finding(
            name,
            f"split {split!r} has no image of {len(absent)} of the {len(names)} classes: {empty}",
            "add images of these classes, or take the classes out of the other splits and of the list, too",
        )


def _examine_sizes(name: str, num_classes: int, sources: Mapping[str, ImageSource]) -> Iterator[Finding]:
    """Compares the numbers of images with the paper's table 7, for folders that bear the paper's name."""
    entry = paper_entry(name)
    if entry is None:
        return
    try:
        parts = arrange(sources, entry)
    except ValueError as error:
        yield Finding(name, str(error), "complete it as docs/datasets.md describes")
        return
    sizes = [len(parts[split][1]) for split in ("train", "validation", "test")]
    if not entry.has_sizes(num_classes, *sizes):
        order = [split for split in ("train", "validation", "test") if split in sources]
        stored = ", ".join(f"{len(sources[split].labels)} {split}" for split in order)
        yield Finding(
            name,
            f"holds {stored} images of {num_classes} classes, where table 7 has "
            f"{entry.num_train_and_validation} train with validation, {entry.num_test} test images of "
            f"{entry.num_classes} classes; its results do not compare with the paper's",
            f"complete it as docs/datasets.md describes, or give the folder a name of its own, such as "
            f"{entry.key}_part",
        )


def _examine_images(name: str, sources: Mapping[str, ImageSource]) -> Iterator[Finding]:
    """Decodes every image, and looks for test images among the others by the hash of their pixels."""
    broken, places = [], {}
    for split in sorted(sources, key=lambda split: split == "test"):
        source, repeated = sources[split], []
        for index, content in enumerate(decode_all(source, _hash_pixels)):
            if isinstance(content, str):
                broken.append(f"{source.where(index)} ({content})")
            elif split != "test":
                places.setdefault(content, (source, index))
            elif content in places:
                twin, at = places[content]
                repeated.append(f"{source.where(index)} is {twin.where(at)}")
        if repeated:
            yield Finding(
                name,
                f"{_count(repeated)} of the test split among training or validation images: {_some(repeated)}",
                "remove one of the two, unless the official data set has them like that and results must compare",
            )
    if broken:
        yield Finding(
            name,
            f"{_count(broken)} that cannot be decoded: {_some(broken)}",
            "get these files again; a run leaves them out only if it is told to",
        )


def _hash_pixels(image: Image.Image) -> bytes:
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).digest()


def _count(images: list[str]) -> str:
    return f"has {len(images)} image{'s' if len(images) > 1 else ''}"


def _some(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
