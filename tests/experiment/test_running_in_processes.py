"""A run that two processes do together leaves what one process leaves, and leaves it once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.running import run


def test_two_processes_write_one_record(tiny, tmp_path):
    script = Path(__file__).with_name("run_in_processes.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*launch, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(tmp_path / name / "code").read_text() for name in ("first", "other")] == ["0", "0"]
    assert done.stdout.count("learning rate: ") == 1 and done.stdout.count("record: ") == 1
    folder = tmp_path / "results" / "tiny"
    (record,) = read_records(folder)
    assert sorted(path.name for path in (folder / record["run_id"]).iterdir()) == ["weights"]
    settings = ["adapter.rank=2", "training.accumulate=2", "training.learning_rate=0.05"]
    alone = run(tiny, [*settings, f"paths.results={tmp_path / 'alone'}"])
    assert record["run_id"] == alone["run_id"] and record["saved"] is not None
    losses, expected = ([loss for _, loss in one["curves"]["loss"]] for one in (record, alone))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert record["scores"]["test"] == alone["scores"]["test"]
