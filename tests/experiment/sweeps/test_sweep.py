import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import fake_experiment
import pytest
from randlora_core.experiment.ledger import Ledger
from randlora_core.experiment.sweep import plan_sweep, run_sweep

from randlora_core.experiment import forkserver


@pytest.fixture(scope="module", autouse=True)
def server():
    forkserver.start_server(["torch", "randlora_core.experiment.sweep"])


def plan(tmp_path, *lists):
    return plan_sweep([(*overrides, f"results={tmp_path}") for overrides in lists], fake_experiment.identify)


def calls(tmp_path):
    file = tmp_path / "calls"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


class Recorder:
    def __init__(self):
        self.snapshots, self.outcomes = [], []

    def update(self, snapshot):
        self.snapshots.append(snapshot)

    def finish(self, outcome, snapshot):
        self.outcomes.append(outcome)
        self.snapshots.append(snapshot)


def test_one_run_after_another_each_in_its_own_process(tmp_path):
    planned = plan(tmp_path, ("seed=1",), ("seed=2",), ("seed=3",))
    display = Recorder()
    outcomes = run_sweep(planned, fake_experiment.run, display=display)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert [outcome.record["config"]["seed"] for outcome in outcomes] == [1, 2, 3]
    processes = {line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()}
    assert len(processes) == 3 and str(os.getpid()) not in processes
    assert max(len(snapshot.running) for snapshot in display.snapshots) == 1
    assert any(event.get("loss") == 1.5 for snapshot in display.snapshots for _, event in snapshot.running)
    assert display.snapshots[-1].done == 3 and display.snapshots[-1].seconds_left == 0


def test_a_sweep_goes_on_after_every_kind_of_failure(tmp_path):
    kinds = ["fail", "die", "killed", "refuse", "finish"]
    planned = plan(tmp_path, *[(f"do={kind}", f"seed={seed}") for seed, kind in enumerate(kinds)])
    outcomes = run_sweep(planned, fake_experiment.run)
    assert [outcome.status for outcome in outcomes] == ["failed"] * 4 + ["finished"]
    assert outcomes[0].error == "RuntimeError: the loss is not a number"
    assert "exit code 7" in outcomes[1].error and "about to vanish" in outcomes[1].error
    assert "SIGKILL" in outcomes[2].error and "memory" in outcomes[2].error
    assert "SystemExit" in outcomes[3].error
    for outcome in outcomes[:4]:
        record = Ledger(tmp_path / "fake").read(outcome.run.run_id)
        assert record["status"] == "failed" and record["config"] == outcome.run.config
        assert outcome.error.startswith(record["error"]["type"])
        assert "\n" not in outcome.error


def test_the_failed_record_of_the_run_itself_is_kept(tmp_path):
    planned = plan(tmp_path, ("do=fail",))
    own = {**fake_experiment.described(()), "status": "failed", "curves": {"loss": [[1, 9.0]]}}
    own["error"] = {"type": "RuntimeError", "message": "the loss is not\na number", "traceback": "its own"}
    Ledger(tmp_path / "fake").write(own)
    (outcome,) = run_sweep(planned, fake_experiment.run)
    assert outcome.record == own == Ledger(tmp_path / "fake").read(own["run_id"])


def test_finished_runs_are_skipped_and_failed_ones_taken_up_again(tmp_path):
    (tmp_path / "do").write_text("fail")
    lists = [("seed=1",), ("seed=2", "do=file"), ("seed=3",)]
    first = run_sweep(plan(tmp_path, *lists), fake_experiment.run)
    assert [outcome.status for outcome in first] == ["finished", "failed", "finished"]
    assert len(calls(tmp_path)) == 3

    (tmp_path / "do").write_text("finish")
    planned = plan(tmp_path, *lists)
    assert [entry.is_done for entry in planned] == [True, False, True]
    second = run_sweep(planned, fake_experiment.run)
    assert [outcome.status for outcome in second] == ["skipped", "finished", "skipped"]
    assert calls(tmp_path)[3:] == [planned[1].run_id]
    assert [outcome.record["status"] for outcome in second] == ["finished"] * 3

    third = run_sweep(plan(tmp_path, *lists), fake_experiment.run)
    assert [outcome.status for outcome in third] == ["skipped"] * 3 and len(calls(tmp_path)) == 4


def test_a_finished_run_that_lacks_what_is_asked_for_is_done_again(tmp_path):
    run_sweep(plan(tmp_path, ("seed=1",)), fake_experiment.run)
    planned = plan(tmp_path, ("seed=1", "complete=no"))
    assert not planned[0].is_done
    assert [outcome.status for outcome in run_sweep(planned, fake_experiment.run)] == ["finished"]


def test_the_same_run_asked_for_twice_is_done_once(tmp_path):
    planned = plan(tmp_path, ("seed=1",), ("seed=1", "do=finish"))
    assert len(planned) == 1
    run_sweep(planned, fake_experiment.run)
    assert len(calls(tmp_path)) == 1


def test_bad_input_is_told_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match=r"^unknown dataset 'nowhere'; accepted: digits$"):
        plan(tmp_path, ("seed=1",), ("dataset=nowhere",))
    with pytest.raises(ValueError, match="jobs=0"):
        run_sweep([], fake_experiment.run, jobs=0)
    assert calls(tmp_path) == [] and not (tmp_path / "fake").exists()


def test_two_jobs_run_side_by_side(tmp_path):
    planned = plan(tmp_path, *[(f"seed={seed}",) for seed in range(5)])
    display = Recorder()
    outcomes = run_sweep(planned, fake_experiment.run, jobs=2, display=display)
    assert [outcome.record["config"]["seed"] for outcome in outcomes] == list(range(5))
    assert max(len(snapshot.running) for snapshot in display.snapshots) == 2


class Interrupting:
    """Presses Ctrl-C in the sweep's process when the hanging run has begun."""

    def update(self, snapshot):
        if any(event for name, event in snapshot.running if "seed 2" in name):
            raise KeyboardInterrupt

    def finish(self, outcome, snapshot):
        pass


def test_an_interruption_ends_the_children_and_keeps_what_is_finished(tmp_path):
    (tmp_path / "do").write_text("hang")
    lists = [("seed=1",), ("seed=2", "do=file"), ("seed=3",)]
    planned = plan(tmp_path, *lists)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(planned, fake_experiment.run, display=Interrupting())
    child = int((tmp_path / "calls").read_text().splitlines()[-1].split()[1])
    assert not Path(f"/proc/{child}").exists()
    again = plan(tmp_path, *lists)
    assert [entry.is_done for entry in again] == [True, False, False]
    assert again[1].record is None

    (tmp_path / "do").write_text("finish")
    assert [outcome.status for outcome in run_sweep(again, fake_experiment.run)] == ["skipped", "finished", "finished"]


def test_the_children_end_with_a_sweep_that_is_killed(tmp_path):
    (tmp_path / "do").write_text("hang")
    script = """
import sys, fake_experiment
from randlora_core.experiment.sweep import plan_sweep, run_sweep
class Tell:
    def update(self, snapshot):
        if any(event for _, event in snapshot.running):
            print("started", flush=True)
    def finish(self, outcome, snapshot): pass
if __name__ == "__main__":
    planned = plan_sweep([("do=file", "results=" + sys.argv[1])], fake_experiment.identify)
    run_sweep(planned, fake_experiment.run, display=Tell())
"""
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as sweep:
        assert sweep.stdout.readline() == "started\n"
        child = int((tmp_path / "calls").read_text().split()[1])
        handle = os.pidfd_open(child)
        sweep.send_signal(signal.SIGKILL)
    try:
        assert select.select([handle], [], [], 60)[0], "the run outlived its sweep"
    finally:
        os.close(handle)


def test_records_on_disk_are_whole(tmp_path):
    (outcome,) = run_sweep(plan(tmp_path, ("seed=1",)), fake_experiment.run)
    assert json.loads(outcome.run.path.read_text()) == outcome.record
    assert sorted(path.name for path in outcome.run.path.parent.iterdir()) == [outcome.run.path.name, "logs"]
