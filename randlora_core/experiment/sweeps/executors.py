"""Where the runs of a sweep are done: in child processes of the sweep, or as jobs of a Slurm cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from randlora_core.experiment.sweeps import forkserver
from randlora_core.experiment.sweeps.child import Message
from randlora_core.experiment.sweeps.slurm import SlurmExecutor, SlurmSettings
from randlora_core.machine import usable_cores


class Job(Protocol):
    """A run under way."""

    def read(self) -> Iterator[Message]:
        """Yields the messages that have arrived, the final one last."""

    def close(self) -> None:
        """Frees what belongs to a job that has sent its final message."""


class Executor(Protocol):
    """Starts runs and watches them."""

    def start(self, function: Callable[..., Any], arguments: Sequence[Any], log: Path) -> Job:
        """Has `function(*arguments, on_progress=...)` called in another process, whose output goes to `log`."""

    def wait(self, jobs: Iterable[Any], timeout: float | None) -> None:
        """Returns when one of the jobs has sent something or ended, or after `timeout` seconds."""

    def end(self, jobs: Iterable[Any]) -> None:
        """Interrupts the jobs (KeyboardInterrupt inside them), gives them time to save, and kills what is left."""


@dataclass(frozen=True)
class Execution:
    """How a command does its runs.

    Attributes:
        jobs: Runs at a time; on a cluster, jobs that are queued or running.
        slurm: What a job asks the cluster for; None for processes on this machine.
    """

    jobs: int = 1
    slurm: SlurmSettings | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether runs are done on other machines than this one."""
        return self.slurm is not None and self.slurm.cluster == "slurm"

    def executor(self, preload: Iterable[str]) -> Executor:
        """The executor; local children find the modules of `preload` imported."""
        return LocalExecutor(self.jobs, preload) if self.slurm is None else SlurmExecutor(self.slurm)


class LocalExecutor:
    """Child processes; see `forkserver`.

    Args:
        jobs: Runs at a time; more than one share the cores evenly.
        preload: Modules that the children find imported.
    """

    def __init__(self, jobs: int, preload: Iterable[str] = ()):
        self.preload = tuple(preload)
        self.num_threads = None if jobs == 1 else max(1, usable_cores() // jobs)

    def start(self, function: Callable[..., Any], arguments: Sequence[Any], log: Path) -> forkserver.Child:
        """Starts a child."""
        forkserver.start_server(self.preload)
        return forkserver.launch(function, arguments, log=log, num_threads=self.num_threads)

    def wait(self, jobs: Iterable[forkserver.Child], timeout: float | None) -> None:
        """Waits for a message."""
        forkserver.wait(jobs, timeout)

    def end(self, jobs: Iterable[forkserver.Child]) -> None:
        """Ends the children."""
        forkserver.end(jobs)
