"""Data sets on disk as memory-mapped Arrow tables, made by Hugging Face `datasets`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from randlora_core.errors import one_line
from randlora_core.files import cache_folder

if TYPE_CHECKING:
    import datasets

SPLIT_NAMES = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
"""Accepted beginnings of Parquet file names and names of split folders, and the split each one means."""

SLOW_BYTES = 2**30
"""From this size of all files on (about ten seconds of copying) progress bars are shown."""


def require_splits(folder: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """Raises a ValueError that names the missing ones of the needed splits."""
    missing = [split for split in needed if split not in found]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)} split (found: {', '.join(sorted(found)) or 'none'}); accepted "
            "are train-*.parquet and test-*.parquet, or folders train/<class>/ and test/<class>/ with images"
        )


def require_images(folder: Path, counts: Mapping[str, int]) -> None:
    """Raises a ValueError that names the first split without an image."""
    for split, count in counts.items():
        if count == 0:
            raise ValueError(f"{folder}: split {split!r} is empty")


def sorted_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Sorts labels as numbers where all of them are, else as text."""
    numeric = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if numeric else None))


def load_arrow(
    builder: str,
    folder: Path,
    files: Mapping[str, Sequence[Path]],
    features: "datasets.Features | None",
    content: str,
    **options: Any,
) -> "datasets.DatasetDict":
    """Opens the Arrow copy of files, made in the cache folder where it is not there; no network is used.

    Args:
        builder: "parquet" or "imagefolder".
        folder: The data set's folder or its one file, for messages.
        files: The files of every split, in order.
        features: Columns and their types; None for those of the files.
        content: Hash of the files' content: the copy is made again when it changes.
        **options: Settings of the builder.

    Returns:
        The rows of every split, in the order of the files; rows are read from disk when asked for.

    Raises:
        ValueError: If a file cannot be read, or the copy cannot be written; one line.
    """
    import datasets
    import datasets.exceptions
    from datasets.data_files import DataFilesDict, DataFilesList

    # As lists of their own class the paths are not taken for patterns, and `content` stands for modification times.
    listed = {split: DataFilesList([str(path) for path in paths], [(content,)]) for split, paths in files.items()}
    is_slow = sum(path.stat().st_size for paths in files.values() for path in paths) >= SLOW_BYTES
    cache = str(cache_folder() / "datasets")
    with _quiet_and_offline(show_progress=is_slow):
        try:
            return datasets.load_dataset(
                builder, data_files=DataFilesDict(listed), features=features, cache_dir=cache, **options
            )
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            reason = one_line(error.__cause__ or error)
            raise ValueError(f"{folder} cannot be copied to Arrow files in {cache}: {reason}") from error


@contextlib.contextmanager
def _quiet_and_offline(show_progress: bool) -> Iterator[None]:
    """Keeps `datasets` from printing, and from telling its makers' server that a builder was used."""
    import datasets

    verbosity, counting = datasets.logging.get_verbosity(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if not show_progress:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counting
        if had_bars:
            datasets.enable_progress_bars()
