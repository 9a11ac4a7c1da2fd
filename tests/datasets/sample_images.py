"""Images that the tests tell apart."""

import io

import numpy as np
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
