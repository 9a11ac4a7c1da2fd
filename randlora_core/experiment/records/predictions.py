"""Packs the predictions of every sample into a few bytes each, so that a record can carry them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ENCODINGS = {"uint8-zlib-base64": np.dtype("<u1"), "uint16-zlib-base64": np.dtype("<u2")}
"""Little-endian integers, zlib-compressed, as base64 text; the narrowest that holds every class is used."""


def encode_predictions(predicted: Any, labels: Any) -> dict[str, Any]:
    """Packs predicted and true classes.

    Args:
        predicted: Class indices, (samples,).
        labels: True class indices, (samples,).

    Returns:
        `encoding`, `shape`, and the two arrays as text: `data` (predicted) and `labels`.

    Raises:
        ValueError: Shapes differ, or an index is negative or above 65,535.
    """
    predicted, labels = (np.asarray(values, dtype=np.int64) for values in (predicted, labels))
    if predicted.ndim != 1 or predicted.shape != labels.shape:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of shape {labels.shape}")
    both = np.concatenate([predicted, labels])
    for encoding, dtype in ENCODINGS.items():
        if both.min(initial=0) >= 0 and both.max(initial=0) <= np.iinfo(dtype).max:
            packed = {"data": _pack(predicted.astype(dtype)), "labels": _pack(labels.astype(dtype))}
            return {"encoding": encoding, "shape": list(predicted.shape), **packed}
    raise ValueError(f"class indices from {both.min()} to {both.max()} are not in 0..65535")


def decode_predictions(packed: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unpacks `encode_predictions`.

    Returns:
        Predicted and true classes, int64, (samples,) each.

    Raises:
        ValueError: Unknown encoding, or another number of samples than the shape says.
    """
    dtype = ENCODINGS.get(packed["encoding"])
    if dtype is None:
        raise ValueError(f"unknown encoding {packed['encoding']!r}; known: {', '.join(ENCODINGS)}")
    arrays = tuple(np.frombuffer(_unpack(packed[key]), dtype).astype(np.int64) for key in ("data", "labels"))
    if any(list(array.shape) != list(packed["shape"]) for array in arrays):
        raise ValueError(f"{arrays[0].size} predictions and {arrays[1].size} labels, shape says {packed['shape']}")
    return arrays


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode("ascii")


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
