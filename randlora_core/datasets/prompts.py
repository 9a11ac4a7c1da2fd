"""Class names and prompts: CLIP's own ones (clip_prompts.json, open_clip), else the stored labels made readable."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalog import DatasetEntry

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Template of data sets for which CLIP published none."""

_SYNSET = re.compile(r"^n\d{8}[_ -]+")
_NUMBER = re.compile(r"^\d+[._ ]+(?=\D)")

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_LABELS_UNLIKE_NAMES = {
    "caltech101": {
        "Faces": "off-center face",
        "Faces_easy": "centered face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "airplanes": "airplane",
        "car_side": "side of a car",
        "cougar_body": "body of a cougar cat",
        "cougar_face": "face of a cougar cat",
        "crocodile_head": "head of a crocodile",
        "flamingo_head": "head of a flamingo",
        "snoopy": "snoopy (cartoon beagle)",
        "yin_yang": "yin and yang symbol",
    },
    "eurosat": {
        "AnnualCrop": "annual crop land",
        "HerbaceousVegetation": "brushland or shrubland",
        "Highway": "highway or road",
        "Industrial": "industrial buildings or commercial buildings",
        "Pasture": "pasture land",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential buildings or homes or apartments",
        "SeaLake": "lake or sea",
    },
    "mnist": {f"{digit} - {word}": str(digit) for digit, word in enumerate(_DIGITS)},
    "flowers102": {"lotus lotus": "lotus", "pink-yellow dahlia": "pink and yellow dahlia"},
}


@dataclass(frozen=True)
class Prompts:
    """What is known of a data set's classes without its files.

    Attributes:
        templates: Prompts with one `{}` for the class name; the first is the one to use where one is needed.
        names: Class names in the order of the official class numbers; empty where only the source can tell them.
        numbers: Official class number of every label that the sources use, without its case and punctuation.
    """

    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    names: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)

    def number(self, label: str) -> int | None:
        """Finds the official class number of a stored label, or None where the label is another one."""
        synset = _SYNSET.match(label)
        cleaned = label[:9] if synset else _NUMBER.sub("", label)
        return self.numbers.get(_key(label), self.numbers.get(_key(cleaned)))


@cache
def prompts_of(entry: "DatasetEntry | None") -> Prompts:
    """Looks up class names and templates.

    Args:
        entry: A row of the catalog, or None for any other data set.

    Returns:
        CLIP's own where it published some. Data sets whose classes have no list at hand (CUB200, Caltech256) have
        templates alone.
    """
    if entry is None:
        return Prompts()
    if entry.embedded is not None:
        return Prompts(entry.embedded.templates, entry.embedded.names)
    if entry.key == "imagenet":
        return _imagenet()
    path = Path(__file__).with_name("clip_prompts.json")
    stored = json.loads(path.read_text(encoding="utf-8"))["datasets"][entry.prompts or entry.key]
    # Caltech101 has one name too many, that of the background, which is no class of the paper's.
    is_own_list = 0 <= len(stored["names"]) - entry.num_classes <= 1
    names = tuple(stored["names"][-entry.num_classes :]) if is_own_list else ()
    unlike = {label: name for label, name in _LABELS_UNLIKE_NAMES.get(entry.key, {}).items() if name in names}
    labels = {**dict(zip(names, names, strict=True)), **unlike}
    return Prompts(tuple(stored["templates"]), names, {_key(label): names.index(labels[label]) for label in labels})


def _imagenet() -> Prompts:
    """Takes names and templates from open_clip, WordNet's numbers and descriptions from timm."""
    import open_clip
    import timm.data

    names = tuple(open_clip.IMAGENET_CLASSNAMES)
    others = (template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    templates = tuple(dict.fromkeys((*DEFAULT_TEMPLATES, *others)))
    wordnet = timm.data.ImageNetInfo("imagenet-1k")
    described = [_key(description) for description in wordnet.label_descriptions()]
    numbers = {key: number for number, key in enumerate(described) if described.count(key) == 1}
    return Prompts(templates, names, {**numbers, **{name: i for i, name in enumerate(wordnet.label_names())}})


def readable_names(labels: Sequence[str], entry: "DatasetEntry | None") -> tuple[str, ...]:
    """Turns stored class labels into names that fit a sentence.

    Underscores become spaces; numbers ("002_") and ImageNet's synset numbers ("n01440764_") go where all labels have
    them. Where a list of names is at hand, its name replaces a label that equals it but for case and punctuation, and
    all of it stands for a complete set of labels in its order. Labels that are official numbers take the name of that
    number; a part of the numbers from 0 or 1 on is left as it is, since it may have been numbered anew.

    Args:
        labels: Stored labels in label order.
        entry: The catalog's data set, or None for any other.

    Returns:
        One name per label, in the same order.
    """
    prompts = prompts_of(entry)
    numbers = [prompts.number(label) for label in labels]
    if prompts.names and all(number is None for number in numbers):
        numbers = _numbers_of(labels, len(prompts.names), entry.key)
    elif len(labels) == len(prompts.names) and all(n in (i, None) for i, n in enumerate(numbers)):
        return prompts.names
    cleaned = _cleaned(labels, entry)
    return tuple(
        label if number is None else prompts.names[number] for label, number in zip(cleaned, numbers, strict=True)
    )


def check_class_order(labels: Sequence[str], entry: "DatasetEntry | None") -> None:
    """Compares the order of a source's labels with that of the official class numbers.

    Names in another order than the numbers that images are labelled with would give every image a wrong name. The
    official order and the alphabet's, in which folders of classes are numbered, are accepted.

    Args:
        labels: Stored labels in label order.
        entry: The catalog's data set; without a list of its classes nothing is checked.

    Raises:
        ValueError: The order is another one; the message names the first difference.
    """
    prompts = prompts_of(entry)
    found = [(index, number) for index, label in enumerate(labels) if (number := prompts.number(label)) is not None]
    spellings = (list(labels), [label.replace("_", " ") for label in labels])
    if any(words == sorted(words, key=order) for words in spellings for order in (str, str.casefold)):
        return
    for (index, number), expected in zip(found, sorted(number for _, number in found), strict=True):
        if number != expected:
            raise ValueError(
                f"class {index} is called {labels[index]!r}, where the official order has "
                f"{prompts.names[expected]!r}; accepted are names in the official order or in the alphabet's"
            )


def _cleaned(labels: Sequence[str], entry: "DatasetEntry | None") -> list[str]:
    for prefix in (_SYNSET, _NUMBER):
        if all(prefix.match(label) for label in labels):
            labels = [prefix.sub("", label) for label in labels]
    if entry is not None and entry.key == "caltech256":  # "baseball-bat", "faces-easy-101"
        labels = [label.removesuffix("-101").replace("-", " ") for label in labels]
    return [" ".join(label.replace("_", " ").split()) for label in labels]


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _numbers_of(labels: Sequence[str], num_classes: int, key: str) -> list[int | None]:
    """Reads labels as official numbers, which begin with 0 or 1; all country codes are numbered by the alphabet."""
    nothing = [None] * len(labels)
    if not all(label.isdecimal() for label in labels):
        return list(range(num_classes)) if key == "country211" and len(labels) == num_classes else nothing
    numbers = [int(label) for label in labels]
    first = min(numbers) if len(labels) == num_classes else int(max(numbers) == num_classes)
    renumbered = len(labels) < num_classes and numbers in (list(range(n, n + len(numbers))) for n in (0, 1))
    if renumbered or not 0 <= min(numbers) - first <= max(numbers) - first < num_classes:
        return nothing
    return [number - first for number in numbers]
