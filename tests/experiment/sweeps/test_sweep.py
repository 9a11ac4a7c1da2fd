import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import fake_runs
import pytest

from randlora_core.experiment.planning import distinct, plan_runs
from randlora_core.experiment.running import opening
from randlora_core.experiment.sweeps import forkserver, sweep
from randlora_core.experiment.sweeps.sweep import run_sweep


@pytest.fixture(scope="module", autouse=True)
def server():
    forkserver.start_server(["torch", "accelerate", "randlora_core.experiment.running"])


@pytest.fixture
def folder(tmp_path):
    """The results folder, in which files say what the fake runs do."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


@pytest.fixture
def plan(tiny, results):
    """Plans a run for each seed."""
    return lambda *seeds: plan_runs(tiny, [[f"seed={seed}", "adapter.rank=2", results] for seed in seeds])


def calls(folder):
    file = folder / "calls"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


class Recorder:
    def __init__(self):
        self.snapshots, self.outcomes = [], []

    def update(self, snapshot):
        self.snapshots.append(snapshot)

    def finish(self, outcome, snapshot):
        self.outcomes.append(outcome)
        self.snapshots.append(snapshot)


def test_one_run_after_another_each_in_its_own_process(plan, folder, monkeypatch):
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_UPDATES", 0)
    display, told = Recorder(), []
    outcomes = run_sweep(plan(1, 2, 3), run=fake_runs.run, display=display, on_outcome=told.append)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert [outcome.record["config"]["seed"] for outcome in outcomes] == [1, 2, 3]
    processes = {line.split()[1] for line in (folder / "calls").read_text().splitlines()}
    assert len(processes) == 3 and str(os.getpid()) not in processes
    assert max(len(snapshot.running) for snapshot in display.snapshots) == 1
    assert any(event.get("loss") == 1.5 for snapshot in display.snapshots for _, event in snapshot.running)
    assert display.snapshots[-1].done == 3 and display.snapshots[-1].seconds_left == 0
    assert told == display.outcomes == outcomes


def test_a_display_is_told_now_and_then_and_at_last_of_what_moved(plan, folder, monkeypatch):
    """A run that reports twice in no time and then takes long is shown as it reported last."""
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_UPDATES", 0.2)
    (folder / "do1").write_text("report")
    display = Recorder()
    run_sweep(plan(1), run=fake_runs.run, display=display)
    shown = [event.get("step") for snapshot in display.snapshots for _, event in snapshot.running]
    assert shown[-1] == 100 and len(shown) < 50


def test_a_sweep_does_what_one_run_does(plan):
    """Without a function of the test's the run itself is done, in a child that imports what it needs."""
    (outcome,) = run_sweep(plan(1))
    assert outcome.status == "finished" and set(outcome.record["scores"]["test"]) == {"near", "far"}
    assert len(outcome.record["curves"]["loss"]) == 4
    assert json.loads(outcome.run.path.read_text()) == outcome.record


def test_a_sweep_goes_on_after_every_kind_of_failure(plan, folder):
    kinds = ["fail", "die", "killed", "refuse", "finish"]
    for seed, kind in enumerate(kinds):
        (folder / f"do{seed}").write_text(kind)
    outcomes = run_sweep(plan(*range(5)), run=fake_runs.run)
    assert [outcome.status for outcome in outcomes] == ["failed"] * 4 + ["finished"]
    assert outcomes[0].error == "RuntimeError: the loss is not a number"
    assert "exit code 7" in outcomes[1].error and "about to vanish" in outcomes[1].error
    assert "SIGKILL" in outcomes[2].error and "memory" in outcomes[2].error
    assert "SystemExit" in outcomes[3].error
    for outcome in outcomes[:4]:
        record = outcome.run.ledger.read(outcome.run.run_id)
        assert record["status"] == "failed" and record["config"] == outcome.run.recorded
        assert outcome.error.startswith(record["error"]["type"]) and record == outcome.record
        assert "\n" not in outcome.error


def test_the_failed_record_of_the_run_itself_is_kept(plan, folder):
    (planned,) = plan(1)
    (folder / "do1").write_text("fail")
    error = {"type": "RuntimeError", "message": "the loss is not\na number", "traceback": "its own"}
    own = {**opening(planned), "curves": {"loss": [[1, 9.0]]}, "error": error}
    planned.ledger.write(own)
    (outcome,) = run_sweep([planned], run=fake_runs.run)
    assert outcome.record == own == planned.ledger.read(planned.run_id)


def test_a_run_that_is_killed_again_and_again_tells_of_every_time(plan, folder):
    """Such a run cannot write its record itself; the messages are the same."""
    (folder / "do1").write_text("killed")
    for earlier in range(3):
        (outcome,) = run_sweep(plan(1), run=fake_runs.run)
        assert "SIGKILL" in outcome.error and len(outcome.record["earlier_errors"]) == earlier


def test_finished_runs_are_skipped_and_failed_ones_taken_up_again(plan, folder):
    (folder / "do2").write_text("fail")
    first = run_sweep(plan(1, 2, 3), run=fake_runs.run)
    assert [outcome.status for outcome in first] == ["finished", "failed", "finished"]
    assert len(calls(folder)) == 3

    (folder / "do2").write_text("finish")
    planned = plan(1, 2, 3)
    assert [entry.status for entry in planned] == ["done", "failed", "done"]
    second = run_sweep(planned, run=fake_runs.run)
    assert [outcome.status for outcome in second] == ["skipped", "finished", "skipped"]
    assert calls(folder)[3:] == [planned[1].run_id]
    assert [outcome.record["status"] for outcome in second] == ["finished"] * 3
    (error,) = second[1].record["earlier_errors"]
    assert error["type"] == "RuntimeError" and error["created"] == first[1].record["created"]

    display = Recorder()
    third = run_sweep(plan(1, 2, 3), run=fake_runs.run, display=display)
    assert display.outcomes == []  # what was done before is not told again
    assert [outcome.status for outcome in third] == ["skipped"] * 3 and len(calls(folder)) == 4


def test_a_finished_run_that_lacks_what_is_asked_for_is_done_again(tiny, plan, results, folder):
    run_sweep(plan(1), run=fake_runs.run)
    (planned,) = plan_runs(tiny, [["seed=1", "adapter.rank=2", "save.adapter=true", results]])
    assert planned.run_id == plan(1)[0].run_id and planned.finished is None
    assert [outcome.status for outcome in run_sweep([planned], run=fake_runs.run)] == ["finished"]
    assert len(calls(folder)) == 2


def test_the_same_run_asked_for_twice_is_done_once(plan):
    assert len(distinct(plan(1, 1, 2))) == 2


def test_bad_input_is_told_before_anything_starts(tiny, results, folder):
    with pytest.raises(ValueError, match=r"^unknown rule 'nowhere'; accepted: sum, difference$"):
        plan_runs(tiny, [[results], ["rule=nowhere", results]])
    with pytest.raises(ValueError, match="jobs=0; accepted: 1 or more"):
        run_sweep([], run=fake_runs.run, jobs=0)
    assert list(folder.iterdir()) == []


def test_two_jobs_run_side_by_side(plan, monkeypatch):
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_UPDATES", 0)
    display = Recorder()
    outcomes = run_sweep(plan(*range(5)), run=fake_runs.run, jobs=2, display=display)
    assert [outcome.record["config"]["seed"] for outcome in outcomes] == list(range(5))
    assert max(len(snapshot.running) for snapshot in display.snapshots) == 2


class Interrupting:
    """Presses Ctrl-C in the sweep's process when the hanging run has begun."""

    def update(self, snapshot):
        if any(event for name, event in snapshot.running if "seed 2" in name):
            raise KeyboardInterrupt

    def finish(self, outcome, snapshot):
        pass


def test_an_interruption_ends_the_children_and_keeps_what_is_finished(plan, folder):
    (folder / "do2").write_text("hang")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(1, 2, 3), run=fake_runs.run, display=Interrupting())
    child = int((folder / "calls").read_text().splitlines()[-1].split()[1])
    assert not Path(f"/proc/{child}").exists()
    again = plan(1, 2, 3)
    assert [entry.status for entry in again] == ["done", "planned", "planned"]
    assert again[1].record is None

    (folder / "do2").write_text("finish")
    outcomes = run_sweep(again, run=fake_runs.run)
    assert [outcome.status for outcome in outcomes] == ["skipped", "finished", "finished"]


def test_the_children_end_with_a_sweep_that_is_killed(tmp_path, folder):
    (folder / "do1").write_text("hang")
    script = """
import sys, pathlib, fake_runs
from tiny_experiment import make_experiment
from randlora_core.experiment.planning import plan_runs
from randlora_core.experiment.sweeps.sweep import run_sweep
class Tell:
    def update(self, snapshot):
        if any(event for _, event in snapshot.running):
            print("started", flush=True)
    def finish(self, outcome, snapshot): pass
if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    planned = plan_runs(make_experiment(folder / "made"), [["seed=1", f"paths.results={folder / 'results'}"]])
    run_sweep(planned, run=fake_runs.run, display=Tell())
"""
    (tmp_path / "script.py").write_text(script)
    paths = [str(Path(fake_runs.__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout.readline() == "started\n"
        child = int((folder / "calls").read_text().split()[1])
        handle = os.pidfd_open(child)
        process.send_signal(signal.SIGKILL)
    try:
        assert select.select([handle], [], [], 60)[0], "the run outlived its sweep"
    finally:
        os.close(handle)


def test_records_on_disk_are_whole(plan):
    (outcome,) = run_sweep(plan(1), run=fake_runs.run)
    assert json.loads(outcome.run.path.read_text()) == outcome.record
    assert sorted(path.name for path in outcome.run.path.parent.iterdir()) == [outcome.run.path.name, "logs"]
