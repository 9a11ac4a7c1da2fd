"""From the splits that a source has to training, validation and test images, of the paper's sizes where it can be."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from .catalog import DatasetEntry
from .images import ImageSource
from .subsets import carve, carve_validation

Part = tuple[ImageSource, np.ndarray]
"""A source and the positions in it that belong to a split, int64."""


class JoinedSource:
    """Several sources, one after the other.

    Args:
        sources: The sources in order.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.labels = np.concatenate([source.labels for source in sources])
        self.sources = tuple(sources)
        self._starts = np.cumsum([0, *(len(source.labels) for source in sources)])

    def image(self, index: int) -> Image.Image:
        """Decodes image `index` of all to RGB."""
        source, own = self._locate(index)
        return source.image(own)

    def where(self, index: int) -> str:
        """Says where image `index` of all is stored."""
        source, own = self._locate(index)
        return source.where(own)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[number], index - int(self._starts[number])


def arrange(sources: Mapping[str, ImageSource], entry: DatasetEntry | None) -> dict[str, Part]:
    """Makes training, validation and test images of what is stored; the test images never serve as any other.

    The paper's data sets get the sizes of its table 7 where the source has as many images: a validation split of
    another size is joined to the training images, or left unused where these are as many without it, and the paper's
    number is cut from the training images. Elsewhere a stored validation split is taken as it is, and without one
    `carve_validation` cuts about a fifth. All cuts are fixed: they depend on no seed.

    Args:
        sources: "train", perhaps "validation", and "test", which only an entry with `is_test_cut` may lack.
        entry: The paper's data set, or None for any other.

    Returns:
        The parts "train", "validation" and "test".

    Raises:
        ValueError: If the test images have to be cut, but the images are not as many as the paper's.
    """
    parts = {split: (source, np.arange(len(source.labels))) for split, source in sources.items()}
    if "test" not in parts:
        parts["train"], parts["test"] = _cut_test(parts["train"][0], entry)
    sizes = {split: len(positions) for split, (_, positions) in parts.items()}
    if entry is not None and sizes["test"] == entry.num_test:
        whole, has_own = entry.num_train_and_validation, sizes.get("validation") == entry.num_validation
        if has_own and sizes["train"] + entry.num_validation == whole:
            return parts
        if "validation" in parts and sizes["train"] + sizes["validation"] == whole:
            source = JoinedSource([sources["train"], sources["validation"]])
            parts["train"] = (source, np.arange(whole))
        if len(parts["train"][1]) == whole:
            return parts | _carved(parts["train"], entry.num_validation, entry.has_equal_cuts)
    return parts if "validation" in parts else parts | _carved(parts["train"], None, False)


def _carved(train: Part, count: int | None, has_equal_parts: bool) -> dict[str, Part]:
    source, positions = train
    labels = source.labels[positions]
    kept, held_out = carve_validation(labels) if count is None else carve(labels, count, "validation", has_equal_parts)
    return {"train": (source, positions[kept]), "validation": (source, positions[held_out])}


def _cut_test(source: ImageSource, entry: DatasetEntry) -> tuple[Part, Part]:
    expected = entry.num_train_and_validation + entry.num_test
    if len(source.labels) != expected:
        raise ValueError(
            f"{len(source.labels)} images without a test split; accepted are a test split, or all {expected} images "
            f"of {entry.paper_name}, of which a fixed part becomes one"
        )
    kept, held_out = carve(source.labels, entry.num_test, "test", entry.has_equal_cuts)
    return (source, kept), (source, held_out)
