"""Readable class names and prompt templates; CLIP's own ones (clip_prompts.json) where it has some."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .catalog import PaperDataset

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Template of data sets for which CLIP published none."""

_SYNSET = re.compile(r"^n\d{8}[_ -]+")
_NUMBER = re.compile(r"^\d+[._ ]+(?=\D)")

_LABELS_UNLIKE_NAMES = {
    "caltech101": {
        "BACKGROUND_Google": "background",
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
    "flowers102": {"lotus lotus": "lotus", "pink-yellow dahlia": "pink and yellow dahlia"},
}


@cache
def _clip_prompts() -> dict[str, dict[str, list[str]]]:
    path = Path(__file__).with_name("clip_prompts.json")
    return json.loads(path.read_text(encoding="utf-8"))["datasets"]


def templates_for(entry: PaperDataset | None) -> tuple[str, ...]:
    """Returns the prompt templates of a data set, CLIP's where it published some.

    Args:
        entry: The paper's data set, or None for any other.
    """
    if entry is None or entry.prompts is None:
        return DEFAULT_TEMPLATES
    return tuple(_clip_prompts()[entry.prompts]["templates"])


def readable_names(labels: Sequence[str], entry: PaperDataset | None) -> tuple[str, ...]:
    """Turns stored class labels into names that fit a sentence.

    Underscores become spaces; numbers ("002_") and ImageNet's synset numbers ("n01440764_") go where all labels have
    them. Where CLIP published names for the data set, its name replaces a label that equals it but for case and
    punctuation; labels that are only numbers, or country codes, take CLIP's names by position.

    Args:
        labels: Stored labels in label order.
        entry: The paper's data set, or None for any other.

    Returns:
        One name per label, in the same order.
    """
    cleaned = _cleaned(labels)
    if entry is None or entry.prompts is None:
        return cleaned
    names = _clip_prompts()[entry.prompts]["names"]
    by_key = {_key(name): name for name in names}
    unlike = {_key(label): name for label, name in _LABELS_UNLIKE_NAMES.get(entry.prompts, {}).items()}
    known = {**by_key, **unlike}
    if entry.official_order and not any(_key(label) in known for label in cleaned):
        return _by_position(labels, names) or cleaned
    return tuple(known.get(_key(label), label) for label in cleaned)


def _cleaned(labels: Sequence[str]) -> tuple[str, ...]:
    for prefix in (_SYNSET, _NUMBER):
        if all(prefix.match(label) for label in labels):
            labels = [prefix.sub("", label) for label in labels]
    return tuple(" ".join(label.replace("_", " ").split()) for label in labels)


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _by_position(labels: Sequence[str], names: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the names at the labels' numbers (from 0 or from 1), or in their order if they are as many."""
    if not all(label.isdecimal() for label in labels):
        return tuple(names) if len(labels) == len(names) else None
    numbers = [int(label) for label in labels]
    first = 1 if max(numbers) == len(names) and min(numbers) > 0 else 0
    if max(numbers) - first >= len(names) or (first == 0 and min(numbers) > 0):
        return None
    return tuple(names[number - first] for number in numbers)
