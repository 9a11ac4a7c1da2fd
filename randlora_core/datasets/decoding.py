"""Which images of a data set cannot be read, found before a run begins and remembered for the next one."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import PIL
from PIL import Image

from randlora_core.errors import one_line
from randlora_core.files import atomic_file, cache_folder
from randlora_core.machine import usable_cores

from .images import UNREADABLE, ImageSource
from .stored import Identity

Result = TypeVar("Result")

IMAGES_AT_A_TIME = 500
"""Images that one thread decodes before it takes the next ones."""


def decode_all(source: ImageSource, use: Callable[[Image.Image], Result]) -> Iterator[Result | str]:
    """Decodes every image of a source, on all cores that this process may use.

    Args:
        source: The images.
        use: What is to be known of an image; several threads call it.

    Yields:
        For every image in order what `use` returns, or the reason as a string where the image cannot be read.
    """
    count = len(source.labels)
    with ThreadPoolExecutor(usable_cores()) as threads:
        for results in threads.map(partial(_decode_some, source, use), range(0, count, IMAGES_AT_A_TIME)):
            yield from results


def _decode_some(source: ImageSource, use: Callable[[Image.Image], Result], start: int) -> list[Result | str]:
    results: list[Result | str] = []
    for index in range(start, min(start + IMAGES_AT_A_TIME, len(source.labels))):
        try:
            results.append(use(source.image(index)))
        except UNREADABLE as error:
            results.append(one_line(error))
    return results


def unreadable_images(sources: Mapping[str, ImageSource], identity: Identity) -> dict[str, dict[int, str]]:
    """Finds the images that cannot be decoded.

    The first call for some content decodes all of it, about as long as an epoch takes to load; the result is kept in
    the cache folder for later calls, also of other processes.

    Args:
        sources: The splits as they are stored.
        identity: Says which content this is.

    Returns:
        Split -> position in the source -> reason, of the splits with such images.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
        found = json.loads(_kept_at(identity).read_text(encoding="utf-8"))
        return {split: {int(index): reason for index, reason in rows.items()} for split, rows in found.items()}
    found = {}
    for split, source in sources.items():
        reasons = {index: reason for index, reason in enumerate(decode_all(source, lambda image: None)) if reason}
        found.update({split: reasons} if reasons else {})
    with contextlib.suppress(OSError, RuntimeError), atomic_file(_kept_at(identity)) as part:
        part.write_text(json.dumps(found), encoding="utf-8")
    return found


def _kept_at(identity: Identity) -> Path:
    return cache_folder() / "decoded" / f"{identity.content}-pillow-{PIL.__version__}.json"
