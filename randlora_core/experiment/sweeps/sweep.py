"""A sweep: a list of planned runs, each done in a process of its own, of which the finished ones are never done twice.

Every run is planned before any is started, so that a misspelt name costs seconds and not a night. Running the same
sweep again is the resume: finished runs are skipped, failed and interrupted ones are taken up. A run that another
process is doing, of this sweep or of another one, is left to it: its result is awaited and collected, and the run is
taken over only where that process ends without one.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from randlora_core.experiment.planning import PlannedRun
from randlora_core.experiment.records.lock import UnderWayError, find_holder
from randlora_core.experiment.records.reading import Record, is_failed, is_finished
from randlora_core.experiment.running import execute, opening
from randlora_core.experiment.sweeps.estimates import RunEstimates
from randlora_core.experiment.sweeps.executors import Executor, Job, LocalExecutor
from randlora_core.experiment.sweeps.forkserver import interrupts_held

Execute = Callable[..., Record]
SECONDS_BETWEEN_UPDATES = 0.5
SECONDS_BETWEEN_LOOKS = 2.0
ELSEWHERE = {"phase": "elsewhere"}
"""The progress event of a run that another process is doing."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: The run.
        status: "finished" by this sweep, "skipped" since it had finished before, finished "elsewhere" meanwhile, or
            "failed".
        record: Its record.
        error: One line about the error of a failed one.
    """

    run: PlannedRun
    status: Literal["finished", "skipped", "elsewhere", "failed"]
    record: Record
    error: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """The sweep as a display shows it.

    Attributes:
        total: Runs in the sweep.
        done: Runs that came to their end here, before or elsewhere, the failed ones included.
        failed: Runs failed.
        running: (name, last progress event) of the runs under way; `ELSEWHERE` for those of other processes.
        seconds_left: Estimated time for the rest, or None where nothing is known.
    """

    total: int
    done: int
    failed: int
    running: tuple[tuple[str, dict[str, Any]], ...]
    seconds_left: float | None


class Display(Protocol):
    """What the sweep tells about itself while it runs; see `progress`."""

    def update(self, snapshot: Snapshot) -> None:
        """Something moved."""

    def finish(self, outcome: Outcome, snapshot: Snapshot) -> None:
        """A run came to its end."""


def run_sweep(
    planned: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    display: Display | None = None,
    earlier: Iterable[Record] = (),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    run: Execute = execute,
) -> list[Outcome]:
    """Does what is not finished, each run in a process of its own; a run that fails does not stop the others.

    Args:
        planned: The runs, each once; see `planning.distinct`.
        jobs: Runs at a time.
        executor: Where they are done; None for child processes.
        display: Is told what happens.
        earlier: Records to estimate the time left from, beside those of this sweep.
        on_outcome: Called with every outcome as it comes.
        run: Does a planned run in its process: (planned, on_progress=...) -> record.

    Returns:
        One outcome per run, in the order of `planned`.

    Raises:
        ValueError: `jobs` is below 1.
        KeyboardInterrupt: After the runs under way have ended. They leave their resumable state, no record, and are
            taken up again by the next call.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}; accepted: 1 or more")
    executor = LocalExecutor(jobs) if executor is None else executor
    sweep = _Sweep(list(planned), run, jobs, executor, display, RunEstimates(earlier), on_outcome)
    try:
        return sweep.run_all()
    except BaseException:
        executor.end(active.job for active in sweep.active)
        raise


@dataclass
class _Active:
    """A run under way and its latest progress event."""

    index: int
    job: Job
    event: dict[str, Any] = field(default_factory=dict)


class _Sweep:
    """The state of a sweep under way: what waits, what runs here and elsewhere, what came out."""

    def __init__(
        self,
        planned: list[PlannedRun],
        run: Execute,
        jobs: int,
        executor: Executor,
        display: Display | None,
        estimates: RunEstimates,
        on_outcome: Callable[[Outcome], None],
    ):
        self.planned, self.run, self.jobs, self.executor = planned, run, jobs, executor
        self.display, self.estimates, self.on_outcome = display, estimates, on_outcome
        self.outcomes: dict[int, Outcome] = {}
        self.active: list[_Active] = []
        self.elsewhere: list[int] = []
        self.shown, self.looked, self.moved = 0.0, 0.0, False
        self.waiting = [index for index, entry in enumerate(planned) if entry.finished is None]

    def run_all(self) -> list[Outcome]:
        for index, entry in enumerate(self.planned):
            if entry.finished is not None:
                self.outcomes[index] = Outcome(entry, "skipped", entry.record)
                self.estimates.add(entry.record)
        while self.waiting or self.active or self.elsewhere:
            while self.waiting and len(self.active) < self.jobs:
                index = self.waiting.pop(0)
                if not self._is_elsewhere(index):
                    self._start(index)
            if self.active or self.elsewhere:
                self.executor.wait([active.job for active in self.active], self._patience())
            for active in list(self.active):
                self._read(active)
            self._look_elsewhere()
            if self.moved:
                self._show()
        return [self.outcomes[index] for index in range(len(self.planned))]

    def _patience(self) -> float | None:
        """Seconds to wait for a message; None for as long as it takes."""
        if self.moved:
            return SECONDS_BETWEEN_UPDATES
        return SECONDS_BETWEEN_LOOKS if self.elsewhere else None

    def _start(self, index: int) -> None:
        entry = self.planned[index]
        log = entry.path.parent / "logs" / f"{entry.run_id}.log"
        with interrupts_held():  # a run that is started and not yet known would go on after an interruption
            self.active.append(_Active(index, self.executor.start(self.run, (entry,), log)))
        self._show()

    def _read(self, active: _Active) -> None:
        entry = self.planned[active.index]
        for kind, value in active.job.read():
            if kind == "progress":
                active.event = value
                self._show()
                continue
            active.job.close()
            self.active.remove(active)
            if kind == "error" and value["type"] == UnderWayError.__name__:
                self._leave(active.index)
            else:
                self._settle(active.index, _outcome(entry, kind, value))

    def _leave(self, index: int) -> None:
        """Leaves a run to the process that is doing it."""
        self.elsewhere.append(index)
        self._show()

    def _is_elsewhere(self, index: int) -> bool:
        """Whether another process does a run, or has done it since it was planned; what that one left is collected."""
        entry = self.planned[index]
        if find_holder(entry.lock) is not None:
            self._leave(index)
            return True
        record = entry.ledger.read(entry.run_id)  # after the lock, which is held until the record is written
        found = replace(entry, record=record)
        if found.status == "done":
            self._settle(index, Outcome(entry, "elsewhere", record))
        elif found.status == "failed" and record != entry.record:
            self._settle(index, Outcome(entry, "failed", record, _one_line(record["error"])))
        else:
            return False
        return True

    def _look_elsewhere(self) -> None:
        """Collects what other processes have done; what they have not is for this one to do."""
        if not self.elsewhere or time.monotonic() - self.looked < SECONDS_BETWEEN_LOOKS:
            return
        left, self.elsewhere = self.elsewhere, []
        self.waiting += [index for index in left if not self._is_elsewhere(index)]
        self.looked = time.monotonic()

    def _settle(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self.estimates.add(outcome.record)
        self.on_outcome(outcome)
        if self.display is not None:
            self.display.finish(outcome, self._snapshot())

    def _show(self) -> None:
        """Tells the display that something moved; not all the time, since a long sweep takes a while to estimate."""
        self.moved = self.display is not None
        if self.moved and time.monotonic() - self.shown >= SECONDS_BETWEEN_UPDATES:
            self.display.update(self._snapshot())
            self.shown, self.moved = time.monotonic(), False

    def _snapshot(self) -> Snapshot:
        running = [(self.planned[active.index], active.event) for active in self.active]
        running += [(self.planned[index], ELSEWHERE) for index in self.elsewhere]
        shares = [(entry, event.get("step", 0) / max(1, event.get("steps", 1))) for entry, event in running]
        waiting = [self.planned[index] for index in self.waiting]
        return Snapshot(
            total=len(self.planned),
            done=len(self.outcomes),
            failed=sum(outcome.status == "failed" for outcome in self.outcomes.values()),
            running=tuple((entry.name, event) for entry, event in running),
            seconds_left=self.estimates.seconds_left(waiting, shares, self.jobs),
        )


def _outcome(entry: PlannedRun, kind: str, value: Any) -> Outcome:
    """The outcome that a child's final message means; a failure without a record of its own gets one here."""
    if kind == "result" and is_finished(value):
        return Outcome(entry, "finished", value)
    if kind == "result":
        error = value["error"]
    elif kind == "error":
        error = value
    else:
        message = value if kind == "crash" else f"interrupted from outside the sweep{f': {value}' if value else ''}"
        error = {"type": "ChildProcessError", "message": f"the run's process was {message}", "traceback": ""}
    return Outcome(entry, "failed", _failed_record(entry, error), _one_line(error))


def _one_line(error: dict[str, str]) -> str:
    return f"{error['type']}: {' '.join(error['message'].split())}"


def _failed_record(entry: PlannedRun, error: dict[str, str]) -> Record:
    """The failed record that the run left, or else one written in its place."""
    record = entry.ledger.read(entry.run_id)
    if is_failed(record) and record != entry.record and record["error"]["message"] == error["message"]:
        return record
    record = {**opening(replace(entry, record=record)), "error": error}
    entry.ledger.write(record)
    return record
