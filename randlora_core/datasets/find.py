"""From a data set's name to its reader: a local folder, then what the hub or torchvision gave or can give."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from randlora_core.errors import one_line

from .catalog import CATALOG, DatasetEntry, find_paper_dataset
from .class_folders import ClassFolders, split_folders
from .hub import downloaded_from_hub, fetch_from_hub
from .parquet import ParquetFiles, parquet_shards
from .prompts import Prompts
from .stored import EmbeddedData, StoredData
from .torchvision_data import downloaded_with_torchvision, fetch_with_torchvision

BUILT_IN: dict[str, type[EmbeddedData]] = {key: entry.embedded for key, entry in CATALOG.items() if entry.embedded}
"""Data sets that need no files: name and reader. Mirrored digits and letters are other ones, so none may be flipped."""

FOLDER_PREFIX = "folder:"
"""Beginning of a name that means a folder, whatever is built in."""

Files = TypeVar("Files")


class MissingDataError(ValueError):
    """The name is right - one of `CATALOG` - but the data set's files are not here."""


class UnknownDataError(ValueError):
    """The name is none that `load_data` accepts."""


def catalog_entry(name: str) -> DatasetEntry | None:
    """Finds the catalog's row for a name that `load_data` accepts; a part of a paper's data set has the whole's row."""
    return CATALOG[name] if name in BUILT_IN else find_paper_dataset(name.removeprefix(FOLDER_PREFIX))


def paper_entry(name: str) -> DatasetEntry | None:
    """Finds the paper's data set that the name stands for as a whole, by its key or an alias."""
    return None if name in BUILT_IN else find_paper_dataset(name.removeprefix(FOLDER_PREFIX), is_whole=True)


def prompts_for(name: str) -> Prompts:
    """Finds what is known of the classes of a data set by its name."""
    entry = catalog_entry(name)
    return entry.prompts if entry else Prompts()


def available(root: str | Path | None = None) -> tuple[str, ...]:
    """Returns the names that `load_data` accepts: the built-in sets, then the folders under `root`.

    A folder that is called as a built-in set is listed as "folder:<name>".

    Args:
        root: A folder of data sets, or None.

    Raises:
        ValueError: If `root` is given but is not a folder.
    """
    if root is None:
        return tuple(BUILT_IN)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"the folder of data sets {str(folder)!r} does not exist; without one: {', '.join(BUILT_IN)}")
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return (*BUILT_IN, *(FOLDER_PREFIX + name if name in BUILT_IN else name for name in folders))


def find_data(name: str, root: str | Path | None, *, download: bool = False) -> StoredData:
    """Finds the reader of a data set, without reading more than the names of its files.

    The first of these that is there counts: a built-in set; the folder `root`/name, for a paper's data set also under
    its other names; for these, what was downloaded earlier from the hub, then by torchvision.

    Args:
        name: As for `load_data`.
        root: A folder of data sets, or None.
        download: Try the hub, then torchvision, for a paper's data set that is not here.

    Raises:
        MissingDataError: If the data set is one of the paper's, but its files are not here (nor to be had).
        UnknownDataError: If the name is unknown.
        ValueError: If the folder is none of a data set, or `root` does not exist.
    """
    entry = paper_entry(name)
    try:
        known = available(root)
    except ValueError as error:
        raise (MissingDataError if entry else ValueError)(f"data set {name!r}: {error}") from None
    if name in BUILT_IN:
        return BUILT_IN[name]()
    folders = [listed.removeprefix(FOLDER_PREFIX) for listed in known[len(BUILT_IN) :]]
    for folder in (name.removeprefix(FOLDER_PREFIX), *(entry.folder_names if entry else ())):
        if folder in folders:
            return _read_folder(Path(root).expanduser() / folder, entry)
    place = f"in {root}" if root is not None else "without a folder of data sets, paths.data=FOLDER"
    accepted = f"accepted {place}: {', '.join(known)}"
    if entry is None:
        near = difflib.get_close_matches(name, known, n=3)
        guess = f" (near: {', '.join(near)})" if near else ""
        raise UnknownDataError(f"unknown data set {name!r}{guess}; {accepted}")
    if not name.startswith(FOLDER_PREFIX):
        if found := _downloaded(entry):
            return found
        if download:
            return fetch(entry)
    raise MissingDataError(
        f"the files of data set {name!r} are not here (docs/datasets.md says how to get them, and "
        f"`python -m randlora_core.datasets fetch {entry.key}` tries the hub and torchvision); {accepted}"
    )


def fetch(entry: DatasetEntry) -> StoredData:
    """Downloads a data set from the hub, else with torchvision, into the cache folder.

    Args:
        entry: One of the paper's data sets.

    Returns:
        Its reader.

    Raises:
        MissingDataError: Neither has it; the message says what each answered.
    """
    failures = []
    sources: tuple[tuple[str, object, Callable[[DatasetEntry], None]], ...] = (
        ("the hub", entry.hub, fetch_from_hub),
        ("torchvision", entry.torchvision, fetch_with_torchvision),
    )
    for place, known, download in sources:
        if known is None:
            failures.append(f"{place} has none that is known here")
            continue
        try:
            download(entry)
        except Exception as error:  # each library and each server fails in its own ways, and the next place may not
            failures.append(f"{place}: {one_line(error)}")
        else:
            return _downloaded(entry)
    raise MissingDataError(
        f"data set {entry.key!r} could not be downloaded ({'; '.join(failures)}); docs/datasets.md says how to get it"
    )


def _downloaded(entry: DatasetEntry) -> StoredData | None:
    from_hub = downloaded_from_hub(entry) if entry.hub else None
    return from_hub or (downloaded_with_torchvision(entry) if entry.torchvision else None)


def _read_folder(folder: Path, entry: DatasetEntry | None) -> StoredData:
    needed = ("train",) if entry and entry.is_test_cut else ("train", "test")
    if shards := parquet_shards(folder):
        return ParquetFiles(folder, _test_by_its_name(shards, entry), needed)
    return ClassFolders(folder, _test_by_its_name(split_folders(folder), entry), needed)


def _test_by_its_name(found: Mapping[str, Files], entry: DatasetEntry | None) -> dict[str, Files]:
    """Takes a validation split for the test split where the source calls it so and there is no other."""
    called_validation = entry is not None and entry.hub is not None and entry.hub.splits.get("test") == "validation"
    if called_validation and "test" not in found and "validation" in found:
        return {"test" if split == "validation" else split: files for split, files in found.items()}
    return dict(found)
