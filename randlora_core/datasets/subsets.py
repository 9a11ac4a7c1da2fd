"""Which images are used: fixed validation and test parts, then nested few-shot or fractional subsets of the rest."""

import numpy as np

from randlora_core.streams import Stream

VALIDATION_FRACTION = 0.2
MAX_VALIDATION = 5000


def ranked_classes(labels: np.ndarray, stream: Stream) -> dict[int, np.ndarray]:
    """Returns the positions of each class's images in a random order that only `stream` decides."""
    priority = stream.array(len(labels))
    order = np.lexsort((priority, labels))
    classes, starts = np.unique(labels[order], return_index=True)
    return {int(label): part for label, part in zip(classes, np.split(order, starts[1:]), strict=True)}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)


def carve_validation(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits training images into a part to train on and a part to validate on, class by class.

    About 20 % of each class, but at least one image and at most 5,000 in all (the paper's limit), go to validation. A
    class with a single image keeps it for training. The choice is fixed: it depends on no seed.

    Args:
        labels: Class index of every image, shape (number of images,).

    Returns:
        Positions to train on and positions to validate on, both sorted; together they are all positions.
    """
    share = min(VALIDATION_FRACTION, MAX_VALIDATION / max(1, len(labels)))
    train, validation = [], []
    for members in ranked_classes(labels, Stream("validation")).values():
        count = min(max(1, int(share * len(members) + 1e-9)), len(members) - 1)
        validation.append(members[:count])
        train.append(members[count:])
    return _joined(train), _joined(validation)


def carve(labels: np.ndarray, count: int, name: str, has_equal_parts: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Splits images into those to keep and exactly `count` to hold out, class by class.

    Args:
        labels: Class index of every image, shape (number of images,).
        count: Images to hold out, less than all.
        name: What they are held out for; it decides the choice, which depends on no seed.
        has_equal_parts: Hold out as many of every class instead of the same share.

    Returns:
        Positions to keep and positions held out, both sorted; together they are all positions.
    """
    ranked = list(ranked_classes(labels, Stream(name)).values())
    sizes = np.array([len(members) for members in ranked])
    shares = np.full(len(ranked), count / len(ranked)) if has_equal_parts else sizes * (count / len(labels))
    quotas = np.floor(shares + 1e-9).astype(np.int64)
    # The largest remainders are rounded up, the smallest label first, until the sum is right.
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    held_out = [members[:quota] for members, quota in zip(ranked, quotas, strict=True)]
    kept = [members[quota:] for members, quota in zip(ranked, quotas, strict=True)]
    return _joined(kept), _joined(held_out)


def few_shot(labels: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, dict[int, int]]:
    """Draws `shots` images of each class; the choice for k shots is part of the choice for any larger number.

    Args:
        labels: Class index of every image, shape (number of images,).
        shots: Images per class, at least 1. A class with fewer gives all it has.
        seed: Seed of the draw.

    Returns:
        The chosen positions, sorted, and the number of images of each class that has fewer than `shots`.

    Raises:
        ValueError: If `shots` is not a positive integer or exceeds the size of every class.
    """
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise ValueError(f"shots={shots!r}: accepted are positive integers, or null for all images")
    ranked = ranked_classes(labels, Stream("few-shot", seed))
    largest = max((len(members) for members in ranked.values()), default=0)
    if shots > largest:
        raise ValueError(
            f"shots={shots} is larger than every class: the largest class has {largest} training images "
            f"after the validation split; accepted are 1 to {largest}"
        )
    short = {label: len(members) for label, members in ranked.items() if len(members) < shots}
    return _joined([members[:shots] for members in ranked.values()]), short


def fractional(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws a fraction of each class, at least one image; smaller fractions are part of larger ones.

    Args:
        labels: Class index of every image, shape (number of images,).
        fraction: Part of the images to keep, in (0, 1].
        seed: Seed of the draw; shared with `few_shot`.

    Returns:
        The chosen positions, sorted.

    Raises:
        ValueError: If `fraction` is not in (0, 1].
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r}: accepted are numbers in (0, 1], or null for all images")
    ranked = ranked_classes(labels, Stream("few-shot", seed))
    return _joined([members[: max(1, round(fraction * len(members)))] for members in ranked.values()])
