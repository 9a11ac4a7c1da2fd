"""Images that the tests tell apart."""

import io

import numpy as np
import pyarrow.parquet
from PIL import Image


def picture(number: int, size: tuple[int, int] = (10, 8)) -> Image.Image:
    """Returns an image whose pixels differ for every number."""
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(number: int) -> bytes:
    """Returns `picture(number)` as PNG."""
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [encoded(row) for row in range(4)]


def write_set(root, **columns):
    """A Parquet set with the same rows in both splits."""
    (root / "set").mkdir()
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table(columns), root / "set" / f"{split}.parquet")
