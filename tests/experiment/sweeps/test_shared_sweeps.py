"""Sweeps that share runs, and sweeps that are stopped: real processes on one results folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_runs
import pytest
from tiny_experiment import make_experiment

from randlora_core.experiment.commands.train import main
from randlora_core.experiment.planning import plan_runs
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.sweeps import forkserver, sweep
from randlora_core.experiment.sweeps.sweep import ELSEWHERE, run_sweep

HERE = Path(fake_runs.__file__).parent
HOLDER = """
import sys, time
from pathlib import Path
from randlora_core.experiment.records.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def server():
    forkserver.start_server(["torch", "accelerate", "randlora_core.experiment.running"])


@pytest.fixture
def plan(tiny, results):
    return lambda *seeds: plan_runs(tiny, [[f"seed={seed}", "adapter.rank=2", results] for seed in seeds])


def start(folder, *arguments):
    """The train command of `shared_sweep.py`, in a process of its own."""
    make_experiment(folder)  # its configurations, which two processes must not write at the same time
    paths = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SHARED_SWEEP": str(folder)}
    command = [sys.executable, str(HERE / "shared_sweep.py"), *arguments, f"paths.results={folder / 'results'}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(*paths):
    for _ in range(6000):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.02)
    raise AssertionError(f"not there: {[path for path in paths if not path.exists()]}")


def hold(path):
    """A process that holds a lock until it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


class WhenAwaited:
    """A display that does something once, when a run is seen to be under way elsewhere."""

    def __init__(self, action):
        self.action, self.seen = action, False

    def update(self, snapshot):
        if not self.seen and any(event == ELSEWHERE for _, event in snapshot.running):
            self.seen = True
            self.action()

    def finish(self, outcome, snapshot):
        pass


@pytest.mark.slow
def test_two_processes_on_one_sweep_do_every_run_once_and_both_have_the_whole_table(tmp_path):
    (tmp_path / "together").write_text("2")
    arguments = ["-m", "seed=1,2,3,4,5,6", "adapter.rank=2", "--jobs", "1"]
    first, second = start(tmp_path, *arguments), start(tmp_path, *arguments)
    outputs = [process.communicate(timeout=300) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(calls) == ["1", "2", "3", "4", "5", "6"]
    assert len(read_records(tmp_path / "results" / "tiny")) == 6
    assert not list((tmp_path / "results" / "tiny").glob("*.lock"))
    tables = [output[output.index("test accuracy in %") :] for output, _ in outputs]
    assert tables[0] == tables[1] and "LoRA-2" in tables[0]
    for output, _ in outputs:
        assert "sweep: 6 runs, 0 finished earlier" in output and "sweep: 6 of 6 runs are done" in output
    elsewhere = [output.count(", by another process") for output, _ in outputs]
    assert sum(elsewhere) <= 6  # fewer where runs ended elsewhere just while their own processes were starting
    for number, (output, _) in zip(elsewhere, outputs, strict=True):
        assert (f", {number} of them elsewhere" in output) == (number > 0)


def test_a_run_of_another_process_is_awaited_and_its_record_collected(plan, monkeypatch):
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.05)
    planned = plan(1, 2, 3)
    other = hold(planned[0].lock)

    def finish():
        planned[0].ledger.write(fake_runs.finished_record(planned[0], created="elsewhere"))
        other.kill()

    outcomes = run_sweep(planned, run=fake_runs.run, display=WhenAwaited(finish))
    assert [outcome.status for outcome in outcomes] == ["elsewhere", "finished", "finished"]
    assert outcomes[0].record["created"] == "elsewhere"


def test_a_run_whose_process_dies_is_taken_over(plan, monkeypatch):
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.05)
    planned = plan(1, 2)
    other = hold(planned[0].lock)
    outcomes = run_sweep(planned, run=fake_runs.run, display=WhenAwaited(other.kill))
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]


def test_a_run_that_fails_elsewhere_is_not_tried_again_at_once(plan, monkeypatch, tmp_path):
    """The next call does, as it does with runs that failed here."""
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.05)
    (planned,) = plan(1)
    other = hold(planned.lock)
    failed = {"type": "ValueError", "message": "of the\nother", "traceback": ""}

    def fail():
        planned.ledger.write({**fake_runs.finished_record(planned), "status": "failed", "error": failed})
        other.kill()

    (outcome,) = run_sweep([planned], run=fake_runs.run, display=WhenAwaited(fail))
    assert (outcome.status, outcome.error) == ("failed", "ValueError: of the other")
    assert not (tmp_path / "results" / "calls").exists()
    assert [outcome.status for outcome in run_sweep(plan(1), run=fake_runs.run)] == ["finished"]


def test_what_was_done_since_it_was_planned_is_not_done_again(plan, tmp_path):
    planned = plan(1, 2)
    planned[1].ledger.write(fake_runs.finished_record(planned[1]))
    outcomes = run_sweep(planned, run=fake_runs.run)
    assert [outcome.status for outcome in outcomes] == ["finished", "elsewhere"]
    assert len((tmp_path / "results" / "calls").read_text().splitlines()) == 1


def test_a_lock_that_is_taken_while_a_run_starts_leaves_it_to_its_holder(plan, monkeypatch):
    """The sweep finds no lock when it looks, the run's own process does."""
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.05)
    (planned,) = plan(1)
    other, look = hold(planned.lock), sweep.find_holder
    answers = iter([None])
    monkeypatch.setattr(sweep, "find_holder", lambda path: next(answers, look(path)))
    (outcome,) = run_sweep([planned], display=WhenAwaited(other.kill))
    assert outcome.status == "finished" and outcome.record["earlier_errors"] == []


@pytest.mark.slow
def test_sigterm_keeps_the_state_of_every_run_and_the_next_call_goes_on_from_it(tmp_path):
    """The whole chain: sweep, runs, their states, the resumed runs, which end as uninterrupted ones do."""
    settings = ["seed=1,2", "adapter.rank=2", "training.learning_rate=0.05", "training.steps=60"]
    arguments = ["-m", *settings, "adapter.dropout=0.1", "--jobs", "2"]
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "slow").touch()
    process = start(tmp_path / "stopped", *arguments)
    wait_for(*(tmp_path / "stopped" / f"reached-{seed}" for seed in (1, 2)))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors
    folder = tmp_path / "stopped" / "results" / "tiny"
    assert read_records(folder) == [] and len(list(folder.glob("*/state.safetensors"))) == 2
    assert not list(folder.glob("*.lock"))

    (tmp_path / "stopped" / "slow").unlink()
    (tmp_path / "whole").mkdir()
    for name in ("stopped", "whole"):
        process = start(tmp_path / name, *arguments)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    resumed, whole = (read_records(tmp_path / name / "results" / "tiny") for name in ("stopped", "whole"))
    by_id = {record["run_id"]: record for record in whole}
    assert len(resumed) == len(by_id) == 2
    for record in resumed:
        assert record["time"]["resumed_at_step"] >= 5 and by_id[record["run_id"]]["time"]["resumed_at_step"] == 0
        assert record["curves"] == by_id[record["run_id"]]["curves"]
        assert record["scores"] == by_id[record["run_id"]]["scores"]
    assert not list(folder.glob("*/state.safetensors"))


def test_an_interruption_while_a_run_is_being_started_ends_that_run_too(plan, monkeypatch, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "do1").write_text("hang")
    started, launch = [], forkserver.launch

    def interrupted(*arguments, **options):
        child = launch(*arguments, **options)
        started.append(child)
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr(forkserver, "launch", interrupted)
    # What a shell starts in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_sweep(plan(1), run=fake_runs.run)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not started[0].process.is_alive()


def test_a_single_run_says_who_is_doing_it(tiny, plan, results, capsys):
    (planned,) = plan(1)
    with hold(planned.lock) as other:
        assert main(tiny, ["seed=1", "adapter.rank=2", results]) == 1
        other.kill()
    error = capsys.readouterr().err
    assert error.startswith(f"error: UnderWayError: {planned.run_id} is under way in process {other.pid} on ")
    assert planned.ledger.read(planned.run_id) is None
