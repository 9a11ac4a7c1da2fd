"""Class names and prompts: CLIP's own ones (clip_prompts.json, open_clip), else the stored labels made readable."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

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
    "flowers102": {
        "ball moss": "air plant",
        "lotus lotus": "lotus",
        "pink-yellow dahlia": "pink and yellow dahlia",
    },
}


@dataclass(frozen=True)
class Prompts:
    """What is known of a data set's classes without its files.

    Attributes:
        templates: Prompts with one `{}` for the class name; the first is the one to use where one is needed.
        names: Class names in the order of the official class numbers; empty where only the source can tell them.
        numbers: Official class numbers of every label that the sources use, without its case and punctuation; two
            classes of ImageNet have the same description.
        key: Which data set of the catalog this is; empty for any other.
    """

    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    names: tuple[str, ...] = ()
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    key: str = ""

    def number(self, label: str, index: int) -> int | None:
        """Finds the official class number of a source's label `index`, or None where the label is another one."""
        cleaned = label[:9] if _SYNSET.match(label) else _NUMBER.sub("", label)
        found = self.numbers.get(_key(label)) or self.numbers.get(_key(cleaned)) or ()
        return index if index in found else found[0] if len(found) == 1 else None


@cache
def known_prompts(key: str, num_classes: int, list_name: str) -> Prompts:
    """Looks up CLIP's class names and templates.

    Args:
        key: The catalog's name of a paper's data set.
        num_classes: How many classes it has.
        list_name: Key in clip_prompts.json, of its own or of another data set.

    Returns:
        What CLIP published. Data sets whose classes have no list at hand (CUB200, Caltech256) have templates alone.
    """
    if key == "imagenet":
        return _imagenet()
    path = Path(__file__).with_name("clip_prompts.json")
    stored = json.loads(path.read_text(encoding="utf-8"))["datasets"][list_name]
    # Caltech101 has one name too many, that of the background, which is no class of the paper's.
    is_own_list = 0 <= len(stored["names"]) - num_classes <= 1
    names = tuple(stored["names"][-num_classes:]) if is_own_list else ()
    unlike = {label: name for label, name in _LABELS_UNLIKE_NAMES.get(key, {}).items() if name in names}
    labels = {**dict(zip(names, names, strict=True)), **unlike}
    numbers = {_key(label): (names.index(name),) for label, name in labels.items()}
    return Prompts(tuple(stored["templates"]), names, numbers, key)


def _imagenet() -> Prompts:
    """Takes names and templates from open_clip, WordNet's numbers and descriptions from timm."""
    import open_clip
    import timm.data

    names = tuple(open_clip.IMAGENET_CLASSNAMES)
    others = (template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    templates = tuple(dict.fromkeys((*DEFAULT_TEMPLATES, *others)))
    wordnet = timm.data.ImageNetInfo("imagenet-1k")
    numbers: dict[str, tuple[int, ...]] = {name: (index,) for index, name in enumerate(wordnet.label_names())}
    for index, description in enumerate(wordnet.label_descriptions()):
        numbers[_key(description)] = (*numbers.get(_key(description), ()), index)
    return Prompts(templates, names, numbers, "imagenet")


def readable_names(labels: Sequence[str], prompts: Prompts) -> tuple[str, ...]:
    """Turns stored class labels into names that fit a sentence.

    Underscores become spaces; numbers ("002_") and ImageNet's synset numbers ("n01440764_") go where all labels have
    them. Where a list of names is at hand, its name replaces a label that equals it but for case and punctuation.
    Labels that are official numbers take the name of that number; a part of the numbers from 0 or 1 on is left as it
    is, since it may have been numbered anew.

    Args:
        labels: Stored labels in label order.
        prompts: What is known of the data set, `Prompts()` for nothing.

    Returns:
        One name per label, in the same order.
    """
    numbers = [prompts.number(label, index) for index, label in enumerate(labels)]
    if prompts.names and all(number is None for number in numbers):
        numbers = _numbers_of(labels, len(prompts.names), prompts.key)
    cleaned = _cleaned(labels, prompts.key)
    return tuple(
        label if number is None else prompts.names[number] for label, number in zip(cleaned, numbers, strict=True)
    )


def check_class_order(labels: Sequence[str], prompts: Prompts) -> None:
    """Compares the order of a source's labels with that of the official class numbers.

    Names in another order than the numbers that images are labelled with would give every image a wrong name. The
    official order and the alphabet's, in which folders of classes are numbered, are accepted.

    Args:
        labels: Stored labels in label order.
        prompts: What is known of the data set; without a list of its classes nothing is checked.

    Raises:
        ValueError: The order is another one; the message names the first difference.
    """
    numbers = ((index, prompts.number(label, index)) for index, label in enumerate(labels))
    found = [(index, number) for index, number in numbers if number is not None]
    spellings = (list(labels), [label.replace("_", " ") for label in labels])
    if any(words == sorted(words, key=order) for words in spellings for order in (str, str.casefold)):
        return
    for (index, number), expected in zip(found, sorted(number for _, number in found), strict=True):
        if number != expected:
            raise ValueError(
                f"class {index} is called {labels[index]!r}, where the official order has "
                f"{prompts.names[expected]!r}; accepted are names in the official order or in the alphabet's"
            )


def _cleaned(labels: Sequence[str], key: str) -> list[str]:
    for prefix in (_SYNSET, _NUMBER):
        if all(prefix.match(label) for label in labels):
            labels = [prefix.sub("", label) for label in labels]
    if key == "caltech256":  # "baseball-bat", "faces-easy-101"
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
