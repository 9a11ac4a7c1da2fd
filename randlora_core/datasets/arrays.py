"""Arrays of images in the cache folder, mapped into memory."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from randlora_core.files import atomic_file, cache_folder


def kept_array(name: str, shape: tuple[int, ...], row: Callable[[int], np.ndarray]) -> Path | None:
    """Sees to it that the cache folder holds an array of bytes.

    Args:
        name: Name of the array, which says all that decides its content.
        shape: Its shape.
        row: Makes row i of it, uint8, shape `shape[1:]`; called only where no such array is there.

    Returns:
        The file, for `np.load(file, mmap_mode="r")`, or None where the cache folder cannot be written.

    Raises:
        ValueError: If a row has another shape.
    """
    try:
        path = cache_folder() / "arrays" / f"{name}.npy"
    except RuntimeError:  # no home
        return None
    with contextlib.suppress(OSError, ValueError, EOFError):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.shape == shape and found.dtype == np.uint8:
            return path
    try:
        with atomic_file(path) as part, part.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for number in range(shape[0]):
                made = row(number)
                if made.shape != shape[1:]:
                    raise ValueError(
                        f"image {number} has shape {made.shape}, image 0 {shape[1:]}; accepted is one shape"
                    )
                file.write(made.tobytes())  # not through a memory map, where a full disk kills the process
        return path
    except OSError:
        return None
