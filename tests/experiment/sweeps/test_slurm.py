"""Runs as jobs, by submitit's own executor for one machine, and what would be submitted to Slurm."""

import os
import re
import select
import signal
import sys
from pathlib import Path

import fake_runs
import pytest
from submitit.core import core

from randlora_core.experiment.commands import execution
from randlora_core.experiment.commands.train import main
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.planning import plan_runs
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.sweeps import slurm
from randlora_core.experiment.sweeps.executors import Execution
from randlora_core.experiment.sweeps.slurm import SlurmExecutor, SlurmJob, SlurmSettings, load_settings
from randlora_core.experiment.sweeps.sweep import run_sweep

SETTINGS = {"cluster": "local", "minutes": 5, "cpus": 1, "gpus": 0}
HERE = str(Path(fake_runs.__file__).parent)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The results folder, in which files say what the fake runs do; jobs find the modules of the tests."""
    paths = [HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr(core.Job, "_results_timeout_s", 1)  # how long the result of a killed job is looked for
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.1)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


@pytest.fixture
def plan(tiny, results):
    return lambda *seeds: plan_runs(tiny, [[f"seed={seed}", "adapter.rank=2", results] for seed in seeds])


class Recorder:
    def __init__(self):
        self.events = []

    def update(self, snapshot):
        self.events += [event for _, event in snapshot.running if event]

    def finish(self, outcome, snapshot):
        pass


@pytest.mark.slow
def test_jobs_finish_fail_and_are_killed_and_each_leaves_its_record(plan, folder):
    for seed, kind in enumerate(["finish", "fail", "killed", "die"]):
        (folder / f"do{seed}").write_text(kind)
    display = Recorder()
    executor = SlurmExecutor(SlurmSettings(**SETTINGS))
    outcomes = run_sweep(plan(0, 1, 2, 3), jobs=4, executor=executor, run=fake_runs.run, display=display)
    assert [outcome.status for outcome in outcomes] == ["finished", "failed", "failed", "failed"]
    assert outcomes[1].error == "RuntimeError: the loss is not a number"
    assert re.search(r"ended without a record: job \d+, state ", outcomes[2].error)
    assert re.search(r"ended without a record: job \d+, state .*about to vanish", outcomes[3].error)
    for outcome in outcomes:
        assert outcome.record == outcome.run.ledger.read(outcome.run.run_id)
    processes = {line.split()[1] for line in (folder / "calls").read_text().splitlines()}
    assert len(processes) == 4 and str(os.getpid()) not in processes
    assert any(event.get("loss") == 1.5 for event in display.events)
    assert not list(folder.glob("tiny/logs/submitit/*.events.json"))


@pytest.mark.slow
def test_the_command_line_sends_a_sweep_to_the_cluster_that_a_file_describes(tiny, results, folder, tmp_path, capsys):
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster: local\nminutes: 5\ncpus: 1\ngpus: 0\n")
    arguments = ["-m", "seed=1,2", "adapter.rank=2", "--executor", str(file), "--jobs", "2", results]
    assert main(tiny, arguments) == 0
    assert "sweep: 2 of 2 runs are done" in capsys.readouterr().out
    assert len(read_records(folder / "tiny")) == 2
    log = (folder / "tiny" / "logs" / f"{read_records(folder / 'tiny')[0]['run_id']}.log").read_text()
    assert "learning rate: " in log and list((folder / "tiny" / "logs" / "submitit").glob("*_result.pkl"))


@pytest.fixture
def submitted(monkeypatch):
    """The runs that a sweep would submit; none is."""
    found = []
    monkeypatch.setattr(execution, "run_sweep", lambda runs, **given: found.extend(runs) or [])
    return found


def test_a_cluster_is_not_given_the_number_format_of_this_machine(tiny, results, tmp_path, submitted):
    local = tmp_path / "local.yaml"
    local.write_text("cluster: local\nminutes: 5\ncpus: 1\ngpus: 0\n")
    elsewhere, here = Execution(2, SlurmSettings(minutes=5, cpus=1, gpus=0)), Execution(2, load_settings(local))

    def plan(precision):
        return plan_runs(tiny, [[f"seed={seed}", f"training.precision={precision}", results] for seed in (1, 2)])

    with pytest.raises(
        ValueError,
        match=r"^training\.precision=auto .* accepted: training\.precision=bf16 or training\.precision=fp32$",
    ):
        execution.execute_runs(plan("auto"), "sweep", execution=elsewhere)
    assert submitted == []
    for precision in ("bf16", "fp32"):
        execution.execute_runs(plan(precision), "sweep", execution=elsewhere)
    for where in (here, Execution(2)):  # this machine does them
        execution.execute_runs(plan("auto"), "sweep", execution=where)
    assert [run.config.training.precision for run in submitted[:4]] == ["bf16", "bf16", "fp32", "fp32"]
    assert len(submitted) == 8 and {run.config.training.precision for run in submitted[4:]} <= {"bf16", "fp32"}


def test_the_commands_refuse_it_in_one_line(tiny, results, submitted, capsys):
    words = ["-m", "seed=1,2", "--executor", "slurm", results]
    assert main(tiny, [*words, "training.precision=auto"]) == 2 and submitted == []
    assert capsys.readouterr().err.startswith("error: training.precision=auto is what this machine multiplies")


class Interrupting:
    """Presses Ctrl-C when the run has begun, and keeps a handle of its process."""

    def __init__(self, calls):
        self.calls, self.handle = calls, None

    def update(self, snapshot):
        if any(event.get("step") for _, event in snapshot.running):
            self.handle = os.pidfd_open(int(self.calls.read_text().split()[1]))
            raise KeyboardInterrupt

    def finish(self, outcome, snapshot):
        pass


@pytest.mark.slow
def test_an_interruption_cancels_the_jobs(plan, folder):
    (folder / "do1").write_text("hang")
    display = Interrupting(folder / "calls")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(1), executor=SlurmExecutor(SlurmSettings(**SETTINGS)), run=fake_runs.run, display=display)
    try:
        assert select.select([display.handle], [], [], 60)[0], "the job outlived its sweep"
    finally:
        os.close(display.handle)
    assert plan(1)[0].record is None


def test_a_signal_before_the_time_is_up_interrupts_the_run_and_says_why(tmp_path, monkeypatch):
    """In this process, whose signals and output are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    saved = []

    def run(number, on_progress):
        on_progress({"step": 1})
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            saved.append(number)
            raise

    def work(number):
        return slurm._work(run, (number,), None, tmp_path / "events.json")

    try:
        assert work(signal.SIGUSR2) == ("interrupted", "its time limit is near, or it is preempted")
        assert work(signal.SIGTERM) == ("interrupted", "the job was cancelled or preempted")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert saved == [signal.SIGUSR2, signal.SIGTERM]
    assert (tmp_path / "events.json").read_text() == '{"step": 1}'


class FakeJob:
    """A job as submitit knows it."""

    job_id = "17"

    def __init__(self, state, tmp_path):
        self.state = state
        self.paths = type("Paths", (), {"stderr": tmp_path / "17.err"})

    def done(self):
        return self.state in ("TIMEOUT", "OUT_OF_MEMORY")

    def exception(self):
        assert self.done(), "submitit waits for ever"
        return RuntimeError("no result")


@pytest.mark.parametrize("state", ["TIMEOUT", "OUT_OF_MEMORY", "PREEMPTED"])
def test_the_clusters_reason_is_told(tmp_path, state):
    (tmp_path / "17.err").write_text("slurmstepd: error: killed\n")
    job = SlurmJob(FakeJob(state, tmp_path), tmp_path / "run.log", tmp_path / "events.json")
    text = f"ended without a record: job 17, state {state}; last line printed: slurmstepd: error: killed"
    assert job.has_news() and list(job.read()) == [("crash", text)]
    (tmp_path / "run.log").write_text("step 7\n")
    assert next(job.read())[1].endswith("last line printed: step 7")
    pending = SlurmJob(FakeJob("PENDING", tmp_path), tmp_path / "run.log", tmp_path / "events.json")
    assert not pending.has_news() and list(pending.read()) == []


def test_what_is_asked_for_reaches_sbatch(tmp_path, monkeypatch):
    """A stand-in for sbatch keeps the script that it is given."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", ""), ("sbatch", f'cp "$1" {tmp_path}/script; echo "Submitted batch job 17"')):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    asked = {"minutes": 90, "cpus": 6, "gpus": 2, "memory_gb": 24, "partition": "long", "setup": ["module load cuda"]}
    executor = SlurmExecutor(SlurmSettings(**asked, sbatch={"account": "mine", "exclusive": True}))
    job = executor.start(print, ("hello",), tmp_path / "logs" / "0123.log")
    assert job.job.job_id == "17"
    script = (tmp_path / "script").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    expected = {"time": "90", "cpus-per-task": "6", "gpus-per-node": "2", "mem": "24GB", "partition": "long"}
    expected |= {"account": "mine", "exclusive": "", "no-requeue": "", "job-name": "0123"}
    assert expected.items() <= options.items() and options["signal"].startswith("USR2@")
    assert "\nmodule load cuda\n" in script and "--cpus-per-task=6" in script and sys.executable in script


def test_settings_are_read_strictly(tmp_path):
    shipped = load_settings(CONFIGS / "executor" / "slurm.yaml")
    assert shipped.cluster == "slurm" and shipped.sbatch == {} and shipped.setup == ()
    file = tmp_path / "mine.yaml"
    file.write_text("minutes: 10\ncpus: 0\ngpus: 1\nqueue: long\n")
    with pytest.raises(ValueError) as caught:
        load_settings(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and all(line.startswith("mine.yaml: ") for line in lines)
    assert "cpus=0" in lines[0] and "unknown setting 'queue'" in lines[1]
    with pytest.raises(ValueError, match=r"nothing\.yaml: no such file; accepted: a YAML file like "):
        load_settings(tmp_path / "nothing.yaml")
