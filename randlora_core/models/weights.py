"""Where the weights of a model come from, and what tells them from others without building the model."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from randlora_core.errors import one_line
from randlora_core.files import file_fingerprint

FOLDER_FILES = ("*.safetensors", "*.bin", "*.json", "*.model")
"""What decides the numbers of a model that transformers reads from a folder: its weights, config and tokenizer."""

HUB_SECONDS = 10
"""How long a hub may take to answer which revision it has."""


class Weights(Protocol):
    """One place that weights come from."""

    def find(self) -> Path | None:
        """The file or folder on this machine; None if it is not here yet."""

    def identify(self) -> str:
        """A text that differs for different weights; the model is not built. OSError where that cannot be found out."""


@dataclass(frozen=True)
class LocalWeights:
    """A weight file, or a folder that transformers loads a model from."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def find(self) -> Path | None:
        """The path, if something is there."""
        return self.path if self.path.exists() else None

    def identify(self) -> str:
        """The SHA-256 of the file, or one over the names and checksums of the folder's files."""
        if not self.path.is_dir():
            return f"file {file_fingerprint(self.path)}"
        paths = sorted({path for pattern in FOLDER_FILES for path in self.path.glob(pattern)})
        if not paths:
            raise FileNotFoundError(f"weights not here: {self.path} has no file {', '.join(FOLDER_FILES)}")
        names = "".join(f"{path.name} {file_fingerprint(path)}\n" for path in paths)
        return f"folder {hashlib.sha256(names.encode()).hexdigest()}"


@dataclass(frozen=True)
class HubWeights:
    """A repository of the Hugging Face hub.

    Attributes:
        repository: Its name, "owner/model".
        files: Names that its weight file may have; one of them in the cache means that the weights are here.
    """

    repository: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"hub {self.repository}"

    def find(self) -> Path | None:
        """The weight file of the current revision in the hub cache; None if it is not there."""
        from huggingface_hub import try_to_load_from_cache

        with contextlib.suppress(ValueError):  # what is no repository's name is not in the cache
            for file in self.files:
                found = try_to_load_from_cache(self.repository, file)
                if isinstance(found, str):
                    return Path(found)
        return None

    def find_revision(self) -> str:
        """The commit of the cached weights, or of the hub's current ones where none are cached.

        Raises:
            FileNotFoundError: If nothing is cached and the hub does not answer or does not have the repository.
        """
        from huggingface_hub import HfApi

        found = self.find()
        if found is not None:
            return found.parent.name  # <cache>/models--owner--model/snapshots/<commit>/<file>
        try:
            return HfApi().model_info(self.repository, timeout=HUB_SECONDS).sha
        except Exception as error:
            raise FileNotFoundError(
                f"weights not here: {self.repository} is not in the hub cache, and the hub does not give it "
                f"({one_line(error)}); a first use needs the network or a filled hub cache"
            ) from error

    def identify(self) -> str:
        """The repository and the commit."""
        return f"hub {self.repository}@{self.find_revision()}"


@contextlib.contextmanager
def one_line_error(name: str, library: str, weights: object) -> Iterator[None]:
    """Turns whatever goes wrong while a library loads weights into one OSError of one line."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{name}: {library} could not load the weights {weights} ({one_line(error)})") from error
