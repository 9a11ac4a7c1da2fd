"""Finds the folder that `paths.data` means: one of this machine, or a data set repository of the Hugging Face hub."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from randlora_core.errors import one_line
from randlora_core.experiment.interface import MissingInputError

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""A repository's name on the hub, "owner/name"."""


def data_folder(place: str | None) -> Path | None:
    """The folder with the data; a hub repository's JSON and Parquet files are downloaded once, into the hub's cache.

    Args:
        place: A folder, or else a repository with files in the places that `sources` names; None for none.

    Raises:
        MissingInputError: It is no folder here, and the hub does not give a repository of this name.
    """
    if place is None:
        return None
    folder = Path(place).expanduser()
    if folder.exists() or not REPOSITORY.fullmatch(place):
        return folder
    try:
        return _downloaded(place)
    except Exception as error:
        raise MissingInputError(
            f"paths.data={place} is no folder here, and the hub gives no data set of that name ({one_line(error)})"
        ) from error


@functools.cache
def _downloaded(repository: str) -> Path:
    """A repository's files; asked for once in a process, so that all are of one revision."""
    from huggingface_hub import snapshot_download

    # What the cache has is taken where the hub does not answer.
    return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=["*.json", "*.parquet"]))
