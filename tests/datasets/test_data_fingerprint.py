"""A data set's fingerprint: what it depends on, and that finding it again is cheap."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from randlora_core.datasets import MissingDataError, fingerprint_data, load_data
from randlora_core.datasets.parquet import ParquetFiles
from randlora_core.datasets.stored import identify

NAMES = ["cat", "guinea_pig", "dog", "sea_horse"]


@pytest.fixture
def root(parquet_root, write_class_folders):
    """The Parquet set `animals` and the class folders `toys`."""
    write_class_folders(parquet_root / "toys" / "train", {"ball": 3, "kite": 2})
    write_class_folders(parquet_root / "toys" / "test", {"ball": 1, "kite": 1}, first=20)
    return parquet_root


@pytest.mark.parametrize("name", ["digits", "characters", "animals", "toys"])
def test_it_is_that_of_the_loaded_data_whatever_is_chosen_of_it(root, name):
    found = fingerprint_data(name, root)
    assert found == load_data(name, root=root).fingerprint == load_data(name, root=root, shots=1, seed=3).fingerprint
    assert len(found) == 64 and int(found, 16) >= 0


def test_it_depends_on_images_labels_and_class_names(root, write_parquet):
    path = root / "animals" / "test-00000-of-00001.parquet"
    labels = [row % 4 for row in range(12)]
    seen = [fingerprint_data("animals", root)]
    for changed, names, first in ((labels, NAMES, 41), (labels[::-1], NAMES, 40), (labels, ["lion", *NAMES[1:]], 40)):
        for shard in ("train-00000-of-00002", "train-00001-of-00002"):
            write_parquet(root / "animals" / f"{shard}.parquet", labels, names)
        write_parquet(path, changed, names, first=first)
        seen.append(fingerprint_data("animals", root))
    assert len(set(seen)) == 4


def test_it_depends_on_the_class_of_every_image_file(root):
    before = fingerprint_data("toys", root)
    folder = root / "toys" / "train"
    (folder / "ball" / "002.png").rename(folder / "ball" / "zz.png")
    assert fingerprint_data("toys", root) == before
    (folder / "ball" / "zz.png").rename(folder / "kite" / "+.png")  # the order of all files stays
    moved = fingerprint_data("toys", root)
    (folder / "kite").rename(folder / "line")
    (root / "toys" / "test" / "kite").rename(root / "toys" / "test" / "line")
    assert len({before, moved, fingerprint_data("toys", root)}) == 3


def test_it_depends_on_the_prompts(root):
    before = fingerprint_data("animals", root)
    shutil.copytree(root / "animals", root / "beasts")
    shutil.copytree(root / "animals", root / "gtsrb_part")
    assert fingerprint_data("beasts", root) == before
    assert load_data("gtsrb_part", root=root).templates != load_data("beasts", root=root).templates
    assert fingerprint_data("gtsrb_part", root) != before


def refuse(*arguments, **options):
    raise AssertionError("read again")


@pytest.mark.parametrize("name", ["animals", "toys"])
def test_unchanged_files_are_not_read_again(root, name, monkeypatch):
    first = fingerprint_data(name, root)
    monkeypatch.setattr(hashlib, "file_digest", refuse)
    monkeypatch.setattr(ParquetFiles, "classes", refuse)
    assert fingerprint_data(name, root) == load_data(name, root=root).fingerprint == first
    os.utime(next((root / name).rglob("*0*.p*")), ns=(0, 0))
    with pytest.raises(AssertionError, match="read again"):
        fingerprint_data(name, root)


def test_later_processes_need_no_reader(root):
    first = fingerprint_data("animals", root)
    code = (
        "import sys; from randlora_core.datasets import fingerprint_data\n"
        f"print(fingerprint_data('animals', {str(root)!r}))\n"
        "print({'datasets', 'pyarrow', 'torchvision'} & {*sys.modules})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [first, "set()"]


def test_a_change_of_size_or_time_alone_is_noticed(root, write_parquet):
    path = root / "animals" / "test-00000-of-00001.parquet"
    status, content = path.stat(), path.read_bytes()
    before = fingerprint_data("animals", root)
    flipped = bytearray(content)
    flipped[50] ^= 1  # inside an image, so the file stays readable
    path.write_bytes(flipped)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint_data("animals", root) != before
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 2))
    assert fingerprint_data("animals", root) == before
    write_parquet(path, [0, 1, 2, 3], NAMES)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 2))
    assert path.stat().st_size != status.st_size
    assert fingerprint_data("animals", root) != before


def test_a_cache_that_is_harmed_or_cannot_be_written_costs_reading_only(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("RANDLORA_CACHE", str(cache))
    first = fingerprint_data("toys", root)
    (kept,) = (cache / "data").iterdir()
    for harm in ("", "[]", '{"content": "0"}', "null"):
        kept.write_text(harm)
        assert fingerprint_data("toys", root) == first
    shutil.rmtree(cache)
    cache.write_text("a file in the folder's place")
    assert fingerprint_data("toys", root) == first

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("RANDLORA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert fingerprint_data("toys", root) == first


def test_files_that_are_no_data_set_have_no_fingerprint(root):
    (root / "animals" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        fingerprint_data("animals", root)


def test_a_changed_recipe_is_another_data_set(root):
    class Newer(ParquetFiles):
        recipe = "parquet of another time"

    files = {"train": tuple(sorted((root / "animals").glob("train*"))), "test": tuple((root / "animals").glob("test*"))}
    assert identify(Newer(root, files)).content != identify(ParquetFiles(root, files)).content


@pytest.mark.parametrize("place", [None, "nowhere", "."])
@pytest.mark.parametrize("name", ["dtd", "Cars", "folder:imagenet-1k"])
def test_missing_data_is_told_from_a_misspelt_name(root, place, name):
    place = None if place is None else root / place
    for function in (fingerprint_data, lambda name, root: load_data(name, root=root)):
        with pytest.raises(MissingDataError, match=name):
            function(name, place)
        for misspelt in ("dtt", "imagenet_1", "animal"):
            with pytest.raises(ValueError, match=misspelt) as caught:
                function(misspelt, place)
            assert not isinstance(caught.value, MissingDataError)
