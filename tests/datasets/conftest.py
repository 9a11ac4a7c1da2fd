"""Small data sets on disk, made by the tests themselves."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sample_images import encoded


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Writes one Parquet file as `datasets` does: an image struct and a label with its names in the metadata."""

    def write(path: Path, labels: Sequence[int], names: Sequence[str], first: int = 0, broken: int = -1) -> Path:
        import datasets

        rows = [b"not an image" if row == broken else encoded(first + row) for row in range(len(labels))]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        images = [{"bytes": content, "path": None} for content in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"image": images, "label": list(labels)}, features=features).to_parquet(path)
        return path

    return write


@pytest.fixture
def parquet_root(tmp_path: Path, write_parquet: Callable[..., Path]) -> Path:
    """A folder with the data set `animals`: two training shards of 20 images, 12 test images, four classes."""
    names = ["cat", "guinea_pig", "dog", "sea_horse"]
    folder = tmp_path / "animals"
    write_parquet(folder / "train-00000-of-00002.parquet", [row % 4 for row in range(20)], names)
    write_parquet(folder / "train-00001-of-00002.parquet", [row % 4 for row in range(20)], names, first=20)
    write_parquet(folder / "test-00000-of-00001.parquet", [row % 4 for row in range(12)], names, first=40)
    return tmp_path


@pytest.fixture
def write_class_folders() -> Callable[..., Path]:
    """Writes class folders with `counts[class]` PNG files each."""

    def write(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
        for name, count in counts.items():
            (folder / name).mkdir(parents=True)
            for number in range(count):
                (folder / name / f"{number:03d}.png").write_bytes(encoded(first + number))
            first += count
        return folder

    return write
