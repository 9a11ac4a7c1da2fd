"""What is known of a data set before its images are read, and the fingerprint that follows from it."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from randlora_core.files import atomic_file, cache_folder

from .images import ImageSource


class StoredData(Protocol):
    """A data set as it is stored: a folder of files, or a recipe.

    Attributes:
        files: The files that decide images and labels, by group (a split, or a class of a split) and in order.
        recipe: What else decides them: the reader's or the generator's version and settings.
    """

    files: Mapping[str, tuple[Path, ...]]
    recipe: str

    def classes(self) -> tuple[str, ...]:
        """Reads the stored label of every class, in label order; a ValueError says what is wrong with the files."""

    def open(self, identity: "Identity") -> dict[str, ImageSource]:
        """Opens "train", "test" and, where it is stored, "validation"; "test" may have to be cut (`arrange`)."""


class EmbeddedData(StoredData, Protocol):
    """A data set that needs no files but those of installed packages.

    Attributes:
        names: Readable name of every class, in label order.
        templates: Prompts with one `{}` for the class name.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Identity:
    """What the files of a data set hold, in short.

    Attributes:
        content: SHA-256 over the recipe and the bytes of all files, whatever their names and wherever they lie.
        classes: Stored label of every class, in label order.
    """

    content: str
    classes: tuple[str, ...]


def identify(stored: StoredData) -> Identity:
    """Hashes the files of a data set and reads its classes; unchanged files are not read a second time.

    The result is kept in the cache folder under the paths, sizes and modification times of all files. Where the cache
    cannot be written, the files are read at every call.

    Raises:
        ValueError: If the classes cannot be read.
        OSError: If a file cannot be read.
    """
    key = _state_of_files(stored)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        kept = json.loads(_kept_at(key).read_text(encoding="utf-8"))
        return Identity(kept["content"], tuple(kept["classes"]))
    identity = Identity(_content(stored), stored.classes())
    with contextlib.suppress(OSError, RuntimeError), atomic_file(_kept_at(key)) as part:
        part.write_text(json.dumps({"content": identity.content, "classes": identity.classes}), encoding="utf-8")
    return identity


def _kept_at(key: str) -> Path:
    return cache_folder() / "data" / f"{key}.json"


def _state_of_files(stored: StoredData) -> str:
    digest = hashlib.sha256(stored.recipe.encode())
    for group, path in _listed(stored.files):
        status = path.stat()
        digest.update(repr((group, str(path.absolute()), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _content(stored: StoredData) -> str:
    digest = hashlib.sha256(stored.recipe.encode())
    for group, path in _listed(stored.files):
        with path.open("rb") as file:
            digest.update(f"{group} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _listed(files: Mapping[str, tuple[Path, ...]]) -> Iterable[tuple[str, Path]]:
    return ((group, path) for group in sorted(files) for path in files[group])
