import json

import pytest
from fake_experiment import make_record
from randlora_core.experiment.ledger import read_records

from randlora_core.experiment.records import collect_records, name_of


def by_id(records):
    return sorted(records, key=lambda record: record["run_id"])


def test_a_collection_reads_back_as_it_was(tmp_path):
    records = [make_record(label, "digits", seed) for label in ("LoRA-4", "VeRA-256") for seed in (2, 1)]
    path = tmp_path / "records" / "default.jsonl"
    assert collect_records([*records, records[0]], path) == 4
    assert by_id(read_records(path)) == by_id(records)
    assert len(path.read_text().splitlines()) == 4
    assert [child.name for child in path.parent.iterdir()] == ["default.jsonl"]


def test_the_file_does_not_depend_on_the_order_of_the_runs(tmp_path):
    records = [make_record(label, "digits", seed) for label in ("B", "A") for seed in (2, 1)]
    collect_records(records, tmp_path / "a.jsonl")
    collect_records(records[::-1], tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    names = [name_of(record["config"]) for record in lines]
    assert names == ["digits A seed 1", "digits A seed 2", "digits B seed 1", "digits B seed 2"]


def test_failed_runs_are_left_out_unless_asked_for_and_lose_their_traceback(tmp_path):
    error = {"type": "E", "message": "m", "traceback": "in /home/someone/file.py"}
    records = [make_record("A", "digits", 1), make_record("A", "digits", 2, status="failed", error=error)]
    path = tmp_path / "some.jsonl"
    assert collect_records(records, path) == 1
    assert collect_records(records, path, statuses=("finished", "failed")) == 2
    (failed,) = [record for record in read_records(path) if record["status"] == "failed"]
    assert failed["error"] == {"type": "E", "message": "m", "traceback": ""}
    assert records[1]["error"] == error


def test_a_record_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "some.jsonl"
    collect_records([make_record("A", "digits", 1)], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        collect_records([make_record("A", "digits", 1, result={"test_accuracy": float("nan")})], path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
