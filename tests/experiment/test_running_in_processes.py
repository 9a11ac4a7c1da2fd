"""A run that two processes do together leaves what one process leaves, and leaves it once."""

from pathlib import Path

import pytest
from launching import launch

from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.running import run


def test_two_processes_write_one_record(tiny, tmp_path):
    output = launch(Path(__file__).with_name("run_in_processes.py"), tmp_path)
    assert [(tmp_path / name / "code").read_text() for name in ("first", "other")] == ["0", "0"]
    assert output.count("learning rate: ") == 1 and output.count("record: ") == 1
    folder = tmp_path / "results" / "tiny"
    (record,) = read_records(folder)
    assert sorted(path.name for path in (folder / record["run_id"]).iterdir()) == ["weights"]
    settings = ["adapter.rank=2", "training.accumulate=2", "training.learning_rate=0.05"]
    alone = run(tiny, [*settings, f"paths.results={tmp_path / 'alone'}"])
    assert record["run_id"] == alone["run_id"] and record["saved"] is not None
    losses, expected = ([loss for _, loss in one["curves"]["loss"]] for one in (record, alone))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert record["scores"]["test"] == alone["scores"]["test"]
