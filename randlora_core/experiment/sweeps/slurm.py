"""Runs as jobs of a Slurm cluster, through submitit (the extra `slurm`).

A job does what a local child process does, on another node: its output goes to the same log, and its record to the same
results folder, which all nodes must share. Jobs outlive a sweep that is killed, and the next one finds their records.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from randlora_core.experiment.sections import Positive, PositiveNumber, Section, validated
from randlora_core.experiment.sweeps.child import Message, attempt, last_words
from randlora_core.extras import needs_extra
from randlora_core.files import atomic_file

GRACE_SECONDS = 30.0  # what cancelled jobs get to leave their state; Slurm kills them about then
POLL_SECONDS = 1.0
PREEMPTED = "PREEMPTED"  # to submitit such a job is not through, since the cluster may start it again; ours it does not


class SlurmSettings(Section):
    """What each run's job asks the cluster for; configs/executor/slurm.yaml explains the values.

    Attributes:
        cluster: slurm, or local for submitit's processes on this machine, to try the rest without a cluster.
        minutes: Time limit of a job. Before it is up the run's state is kept, and the next call goes on from it.
        cpus: Cores of a job.
        gpus: GPUs of a job.
        memory_gb: Memory of a job; null for the cluster's default.
        partition: Where jobs are queued; null for the cluster's default.
        sbatch: Further options of sbatch by name, such as {account: mine, constraint: a100}.
        setup: Shell commands that a job runs first, such as ["module load cuda"].
    """

    cluster: Literal["slurm", "local"] = "slurm"
    minutes: Positive
    cpus: Positive
    gpus: int = Field(ge=0)
    memory_gb: PositiveNumber | None = None
    partition: str | None = None
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    setup: tuple[str, ...] = Field(default=(), strict=False)


def load_settings(path: Path) -> SlurmSettings:
    """Reads settings from a YAML file.

    Raises:
        ValueError: There is no such file, or one line for each value that is missing, unknown or not accepted.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: no such file; accepted: a YAML file like configs/executor/slurm.yaml")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return validated(SlurmSettings, values or {}, path.name)


class SlurmJob:
    """A job in the queue or under way."""

    def __init__(self, job: Any, log: Path, events: Path):
        self.job, self.log, self.events = job, log, events
        self._seen = ""

    def read(self) -> Iterator[Message]:
        """Yields the latest progress event where it is a new one, and the final message of a job that has ended."""
        ended = self.has_ended()
        with contextlib.suppress(OSError):
            text = self.events.read_text(encoding="utf-8")
            if text != self._seen:
                self._seen = text
                yield "progress", json.loads(text)
        if ended:
            yield self._final()

    def has_news(self) -> bool:
        """Whether `read` has something to give."""
        with contextlib.suppress(OSError):
            if self.events.read_text(encoding="utf-8") != self._seen:
                return True
        return self.has_ended()

    def has_ended(self) -> bool:
        """Whether the job is through, as soon as its result is there, else as soon as Slurm's accounting says so."""
        return self.job.done() or self.job.state.upper() == PREEMPTED

    def close(self) -> None:
        """Removes the file of progress events."""
        self.events.unlink(missing_ok=True)

    def _final(self) -> Message:
        if self.job.state.upper() != PREEMPTED and self.job.exception() is None:
            return self.job.result()
        words = last_words(self.log) or last_words(self.job.paths.stderr)
        return "crash", f"ended without a record: job {self.job.job_id}, state {self.job.state}{words}"


class SlurmExecutor:
    """Submits runs and watches their jobs.

    Args:
        settings: What each job asks for.
    """

    def __init__(self, settings: SlurmSettings):
        with needs_extra("slurm"):
            import submitit  # noqa: F401

        self.settings = settings

    def start(self, function: Callable[..., Any], arguments: Sequence[Any], log: Path) -> SlurmJob:
        """Submits a job; submitit's own files go to the folder `submitit` beside the log."""
        import submitit

        asked, folder = self.settings, log.parent / "submitit"
        executor = submitit.AutoExecutor(folder=folder, cluster=asked.cluster)
        parameters = {
            "name": log.stem,
            "timeout_min": asked.minutes,
            "cpus_per_task": asked.cpus,
            "gpus_per_node": asked.gpus,
            "slurm_partition": asked.partition,
            "slurm_setup": list(asked.setup) or None,
            "slurm_srun_args": [f"--cpus-per-task={asked.cpus}"],  # since Slurm 22.05 srun does not take the job's
            # A job that is started again by the cluster would not be known to any sweep.
            "slurm_additional_parameters": {"no-requeue": True, **asked.sbatch},
        }
        if asked.memory_gb is not None:
            parameters["mem_gb"] = asked.memory_gb
        executor.update_parameters(**parameters)
        events = folder / f"{log.stem}.events.json"
        for left in (events, log):  # by an earlier job of the same run
            left.unlink(missing_ok=True)
        return SlurmJob(executor.submit(_work, function, tuple(arguments), log, events), log, events)

    def wait(self, jobs: Iterable[SlurmJob], timeout: float | None) -> None:
        """Waits for a message."""
        jobs, deadline = list(jobs), None if timeout is None else time.monotonic() + timeout
        while not any(job.has_news() for job in jobs):
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - time.monotonic())
            if left <= 0:
                return
            time.sleep(left)

    def end(self, jobs: Iterable[SlurmJob]) -> None:
        """Cancels the jobs and waits until they have left their state."""
        jobs = list(jobs)
        for job in jobs:
            job.job.cancel(check=False)
        deadline = time.monotonic() + GRACE_SECONDS
        while not all(job.has_ended() for job in jobs) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for job in jobs:
            job.close()


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], log: Path, events: Path) -> Message:
    """The job's life: one call, whose final message is the job's result."""
    warned: list[int] = []

    def warn(number: int, frame: Any) -> None:
        warned.append(number)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR2, warn)
    told = -POLL_SECONDS

    def tell(event: dict[str, Any]) -> None:
        nonlocal told
        if time.monotonic() - told >= POLL_SECONDS:
            told = time.monotonic()
            with atomic_file(events) as part:
                part.write_text(json.dumps(event), encoding="utf-8")

    kind, value = attempt(function, arguments, tell, log)
    if kind == "interrupted":
        value = "its time limit is near, or it is preempted" if warned else "the job was cancelled or preempted"
    return kind, value
