import json

import pytest
from fake_runs import make_record

from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.records.reading import collect_records, errors_of


def by_id(records):
    return sorted(records, key=lambda record: record["run_id"])


def test_a_collection_reads_back_as_it_was(tmp_path):
    records = [make_record(label, "sum", seed) for label in ("LoRA-4", "VeRA-256") for seed in (2, 1)]
    path = tmp_path / "records" / "default.jsonl"
    assert collect_records([*records, records[0]], path) == 4
    assert by_id(read_records(path)) == by_id(records)
    assert len(path.read_text().splitlines()) == 4
    assert [child.name for child in path.parent.iterdir()] == ["default.jsonl"]


def test_the_file_does_not_depend_on_the_order_of_the_runs(tmp_path):
    records = [make_record(label, "sum", seed) for label in ("B", "A") for seed in (2, 1)]
    collect_records(records, tmp_path / "a.jsonl")
    collect_records(records[::-1], tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    names = [(record["config"]["adapter"]["label"], record["config"]["seed"]) for record in lines]
    assert names == [("A", 1), ("A", 2), ("B", 1), ("B", 2)]


def test_failed_runs_are_left_out_unless_asked_for_and_lose_their_traceback(tmp_path):
    error = {"type": "E", "message": "m", "traceback": "in /home/someone/file.py"}
    records = [make_record("A", "sum", 1), make_record("A", "sum", 2, status="failed", error=error)]
    path = tmp_path / "some.jsonl"
    assert collect_records(records, path) == 1
    assert collect_records(records, path, statuses=("finished", "failed")) == 2
    (failed,) = [record for record in read_records(path) if record["status"] == "failed"]
    assert failed["error"] == {"type": "E", "message": "m", "traceback": ""}
    assert records[1]["error"] == error


def test_errors_of_earlier_attempts_are_kept_without_their_traceback(tmp_path):
    earlier = [{"type": "E", "message": "m", "traceback": "in /home/someone/file.py", "created": "2026"}]
    collect_records([make_record("A", "sum", 1, earlier_errors=earlier)], tmp_path / "some.jsonl")
    (record,) = read_records(tmp_path / "some.jsonl")
    assert record["earlier_errors"] == [{**earlier[0], "traceback": ""}]


def test_records_without_a_list_of_earlier_errors_have_none():
    error = {"type": "E", "message": "m", "traceback": "t"}
    failed = make_record("A", "sum", 2, status="failed", error=error)
    assert "earlier_errors" not in failed
    assert errors_of(None) == errors_of(make_record("A", "sum", 1)) == []
    assert errors_of(failed) == [{**error, "created": failed["created"]}]


def test_a_record_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "some.jsonl"
    collect_records([make_record("A", "sum", 1)], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        collect_records([make_record("A", "sum", 1, scores={"validation": float("nan")})], path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
