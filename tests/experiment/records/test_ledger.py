import errno
import json
import os
import resource

import pytest

from randlora_core.experiment.records.ledger import Ledger, describe_error, read_records
from randlora_core.files import atomic_file


def record(run_id, status="finished", created="2025-01-01T00:00:00+00:00", **more):
    return {"schema": 2, "run_id": run_id, "status": status, "created": created, **more}


def test_records_are_read_back_and_only_finished_ones_count(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "folder")
    assert ledger.read("a") is None and ledger.finished("a") is None
    ledger.write(record("a", "failed"))
    assert ledger.read("a")["status"] == "failed" and ledger.finished("a") is None
    ledger.write(record("a", value=0.5))
    assert ledger.finished("a") == record("a", value=0.5)
    assert [path.name for path in ledger.directory.iterdir()] == ["a.json"]


def test_a_finished_record_is_never_replaced_by_a_failed_one(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.write(record("a", value=0.5))
    ledger.write(record("a", "failed"))
    assert ledger.read("a") == record("a", value=0.5)
    ledger.write(record("a", value=0.6))
    assert ledger.read("a")["value"] == 0.6


def test_a_full_disk_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.write(record("a", value=1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for run_id in ("a", "b"):
        with pytest.raises(OSError, match="No space left"):
            ledger.write(record(run_id, value=2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert ledger.read("a")["value"] == 1


def test_a_write_cut_short_by_the_system_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            Ledger(tmp_path).write(record("a", text="x" * 100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_readable_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "record.json") as part:
            part.write_text("{}")
    finally:
        os.umask(before)
    assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o640


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError):
        Ledger(tmp_path).write(record("a", value=float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_body_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_one_reader_for_folders_files_and_lines(tmp_path):
    ledger = Ledger(tmp_path / "results")
    ledger.write(record("b", created="2025-01-03"))
    ledger.write(record("a", created="2025-01-02"))
    lines = tmp_path / "sweep.jsonl"
    lines.write_text("\n".join(json.dumps(record(name, created="2025-01-01")) for name in ("d", "c")) + "\n\n")
    assert [r["run_id"] for r in read_records(ledger.directory, lines)] == ["c", "d", "a", "b"]
    assert [r["run_id"] for r in read_records(ledger.path("a"))] == ["a"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_records(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', ""])
def test_files_that_are_no_records_are_named(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_records(tmp_path)


def test_errors_are_described_with_their_traceback():
    try:
        raise ValueError("rank=0")
    except ValueError as error:
        described = describe_error(error)
    assert described["type"] == "ValueError" and described["message"] == "rank=0"
    assert "test_ledger.py" in described["traceback"]


def test_a_damaged_line_is_named_by_its_number(tmp_path):
    lines = tmp_path / "sweep.jsonl"
    lines.write_text(json.dumps(record("a")) + "\n\n" + json.dumps(record("b"))[:20] + "\n")
    with pytest.raises(ValueError, match=rf"^{lines}, line 3: it is not JSON \("):
        read_records(lines)
