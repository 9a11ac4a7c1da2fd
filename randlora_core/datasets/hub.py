"""Data sets of the Hugging Face hub, downloaded once and read from the Arrow files that `datasets` made of them."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from randlora_core.files import atomic_file, cache_folder

from .catalog import DatasetEntry, HubEntry
from .images import ImageSource
from .parquet import ParquetSource, classes_of_values, label_indices
from .stored import Identity

if TYPE_CHECKING:
    import datasets


def fetch_from_hub(entry: DatasetEntry) -> None:
    """Downloads a data set, whole, into the cache folder; what `datasets` already has there is not loaded again.

    Args:
        entry: A data set with a `HubEntry`.

    Raises:
        ValueError: The repository has other columns.
        Exception: Whatever `datasets` raises where the hub cannot be reached, the repository wants a login or has
            other splits.
    """
    import datasets

    hub = entry.hub
    splits = datasets.load_dataset(
        hub.repository, hub.config, split=dict(hub.splits), cache_dir=str(cache_folder() / "datasets")
    )
    for split, rows in splits.items():
        if absent := {hub.image, hub.label} - set(rows.column_names):
            raise ValueError(f"{hub.address}, split {split!r} has no column {' and no '.join(sorted(absent))}")
    files = {split: [file["filename"] for file in rows.cache_files] for split, rows in splits.items()}
    with atomic_file(_note_of(entry)) as part:
        part.write_text(json.dumps(files), encoding="utf-8")


def downloaded_from_hub(entry: DatasetEntry) -> "HubData | None":
    """Returns what `fetch_from_hub` has downloaded, without using the network; None where nothing is there."""
    with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
        noted = json.loads(_note_of(entry).read_text(encoding="utf-8"))
        files = {split: tuple(map(Path, paths)) for split, paths in noted.items()}
        if files and all(path.is_file() for paths in files.values() for path in paths):
            return HubData(entry.hub, files)
    return None


def _note_of(entry: DatasetEntry) -> Path:
    return cache_folder() / "hub" / f"{entry.key}.json"


class HubData:
    """Arrow files as `datasets` keeps them.

    Args:
        hub: Names the columns.
        files: The Arrow files of every split.
    """

    def __init__(self, hub: HubEntry, files: Mapping[str, tuple[Path, ...]]) -> None:
        self.files = files
        self.recipe = repr(("hub", 1, hub.image, hub.label))
        self._hub = hub

    def classes(self) -> tuple[str, ...]:
        """Takes the classes from the files' metadata, else from the training labels."""
        import datasets

        train = self._rows(self.files["train"])
        feature = train.features[self._hub.label]
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        return classes_of_values(set(train.unique(self._hub.label)), feature.dtype != "string")

    def open(self, identity: Identity) -> dict[str, ImageSource]:
        """Opens the memory-mapped files."""
        import datasets

        sources: dict[str, ImageSource] = {}
        for split, paths in self.files.items():
            rows = self._rows(paths)
            where = f"{self._hub.address}, split {split!r}"
            labels = label_indices(rows.data.column(self._hub.label), identity.classes, where)
            num_rows = [len(datasets.Dataset.from_file(str(path))) for path in paths]
            sources[split] = ParquetSource(rows, self._hub.image, labels, paths, num_rows)
        return sources

    def _rows(self, paths: Sequence[Path]) -> "datasets.Dataset":
        import datasets

        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])
        rows = rows.select_columns([self._hub.image, self._hub.label])
        return rows.cast_column(self._hub.image, datasets.Image(decode=False))
