import hashlib
import os
from pathlib import Path

import pytest

from randlora_core import files
from randlora_core.files import atomic_files, cache_folder, file_fingerprint, naming, parse_json, read_json


@pytest.fixture
def reads(monkeypatch):
    """The files that were read for their checksum."""
    read, digest = [], hashlib.file_digest

    def counted(file, algorithm):
        read.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(files.hashlib, "file_digest", counted)
    return read


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def test_a_fingerprint_is_the_sha256_and_an_unchanged_file_is_read_once(tmp_path, reads):
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(b"one")
    other.write_bytes(b"another")
    for _ in range(3):
        assert file_fingerprint(path) == hashlib.sha256(b"one").hexdigest()
        assert file_fingerprint(other) == hashlib.sha256(b"another").hexdigest()
    assert sorted(reads) == ["other", "weights"]


def test_one_path_however_it_is_written(tmp_path, reads, monkeypatch):
    (tmp_path / "weights").write_bytes(b"one")
    (tmp_path / "link").symlink_to(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    assert len({file_fingerprint(path) for path in (tmp_path / "weights", Path("weights"), "link")}) == 1
    assert reads == ["weights"]


@pytest.mark.parametrize(("content", "later_ns"), [(b"longer", 0), (b"two", 1)])
def test_another_size_or_another_time_is_another_fingerprint(tmp_path, reads, content, later_ns):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    file_fingerprint(path)
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18 + later_ns))
    assert file_fingerprint(path) == hashlib.sha256(content).hexdigest()
    assert reads == ["weights"] * 2


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "3"])
def test_a_damaged_entry_is_made_again(tmp_path, cache, reads, damage):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    file_fingerprint(path)
    (entry,) = (cache / "fingerprints").iterdir()
    entry.write_text(damage)
    assert [file_fingerprint(path), file_fingerprint(path)] == [hashlib.sha256(b"one").hexdigest()] * 2
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_costs_a_read_and_a_missing_file_is_an_error(tmp_path, cache, reads):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    cache.write_text("a file where the folder would be")
    assert [file_fingerprint(path), file_fingerprint(path)] == [hashlib.sha256(b"one").hexdigest()] * 2
    assert len(reads) == 2
    with pytest.raises(FileNotFoundError, match="absent"):
        file_fingerprint(tmp_path / "absent")


def test_files_that_belong_together_change_together(tmp_path):
    paths = [tmp_path / "new" / "one", tmp_path / "two"]
    paths[1].write_text("old")
    with pytest.raises(KeyError), atomic_files(paths) as parts:
        for part in parts:
            part.write_text("half")
        assert paths[1].read_text() == "old" and not paths[0].exists()
        raise KeyError
    assert paths[1].read_text() == "old" and list(paths[0].parent.iterdir()) == []
    with atomic_files(paths) as parts:
        for part, text in zip(parts, "ab", strict=True):
            part.write_text(text)
        assert paths[1].read_text() == "old"
    assert [path.read_text() for path in paths] == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "two"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"it cannot be read \(No such file or directory\)"),
        (b'{"a": [1, ', r"it is not JSON \(.*line 1 column 11.*\)"),
        (b"\xff\xfe\x00", r"it is not JSON \(.*\)"),
        (b"[" * 100_000, r"it is not JSON \(.*recursion.*\)"),
        (b"[1]", "it holds a JSON list, not an object"),
        (b"null", "it holds a JSON NoneType, not an object"),
    ],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, content, reason):
    path = tmp_path / "some.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: {reason}$"):
        read_json(path)


def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "some.json").write_text('{"a": "\u00e9"}', encoding=encoding)
        assert read_json(tmp_path / "some.json") == {"a": "\u00e9"}
    assert parse_json("[1, 2]", list) == [1, 2]
    with pytest.raises(ValueError, match=r"^line 3: it holds a JSON dict, not a list$"), naming("line 3"):
        parse_json("{}", list)
