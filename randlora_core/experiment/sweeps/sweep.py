"""A sweep: a list of planned runs, each done in a child process, of which the finished ones are never done twice.

Every run is planned before any is started, so that a misspelt name costs seconds and not a night. Running the same
sweep again is the resume: finished runs are skipped, failed and interrupted ones are taken up.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from randlora_core.experiment.loop.hardware import usable_cores
from randlora_core.experiment.planning import PlannedRun
from randlora_core.experiment.records.reading import Record, is_finished
from randlora_core.experiment.running import execute, opening
from randlora_core.experiment.sweeps import forkserver
from randlora_core.experiment.sweeps.estimates import RunEstimates

Execute = Callable[..., Record]
SECONDS_BETWEEN_UPDATES = 0.5


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its record where there is one, and one line about the error of a failed one."""

    run: PlannedRun
    status: Literal["finished", "skipped", "failed"]
    record: Record | None = None
    error: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """The sweep as a display shows it.

    Attributes:
        total: Runs in the sweep.
        done: Runs finished, skipped or failed.
        failed: Runs failed.
        running: (name, last progress event) of the runs under way.
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
    display: Display | None = None,
    earlier: Iterable[Record] = (),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    run: Execute = execute,
) -> list[Outcome]:
    """Does what is not finished, each run in a child process; a run that fails does not stop the others.

    Args:
        planned: The runs, each once; see `planning.distinct`.
        jobs: Runs at a time. More than one share the cores evenly.
        display: Is told what happens.
        earlier: Records to estimate the time left from, beside those of this sweep.
        on_outcome: Called with every outcome as it comes.
        run: Does a planned run in the child: (planned, on_progress=...) -> record.

    Returns:
        One outcome per run, in the order of `planned`.

    Raises:
        ValueError: `jobs` is below 1.
        KeyboardInterrupt: After the children have ended. Interrupted runs leave no record and are taken up again.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}; accepted: 1 or more")
    sweep = _Sweep(list(planned), run, jobs, display, RunEstimates(earlier), on_outcome)
    try:
        return sweep.run_all()
    except BaseException:
        forkserver.end(active.child for active in sweep.active)
        raise


@dataclass
class _Active:
    """A run under way and its latest progress event."""

    index: int
    child: forkserver.Child
    event: dict[str, Any] = field(default_factory=dict)


class _Sweep:
    """The state of a sweep under way: what waits, what runs, what came out."""

    def __init__(
        self,
        planned: list[PlannedRun],
        run: Execute,
        jobs: int,
        display: Display | None,
        estimates: RunEstimates,
        on_outcome: Callable[[Outcome], None],
    ):
        self.planned, self.run, self.jobs, self.display, self.estimates = planned, run, jobs, display, estimates
        self.on_outcome = on_outcome
        self.outcomes: dict[int, Outcome] = {}
        self.active: list[_Active] = []
        self.shown, self.moved = 0.0, False
        self.waiting = [index for index, entry in enumerate(planned) if entry.finished is None]
        self.num_threads = None if jobs == 1 else max(1, usable_cores() // jobs)

    def run_all(self) -> list[Outcome]:
        for index, entry in enumerate(self.planned):
            if entry.finished is not None:
                self.outcomes[index] = Outcome(entry, "skipped", entry.record)
                self.estimates.add(entry.record)
        while self.waiting or self.active:
            while self.waiting and len(self.active) < self.jobs:
                self._start(self.waiting.pop(0))
            forkserver.wait((active.child for active in self.active), SECONDS_BETWEEN_UPDATES if self.moved else None)
            for active in list(self.active):
                self._read(active)
            if self.moved:
                self._show()
        return [self.outcomes[index] for index in range(len(self.planned))]

    def _start(self, index: int) -> None:
        entry = self.planned[index]
        log = entry.path.parent / "logs" / f"{entry.run_id}.log"
        child = forkserver.launch(self.run, (entry,), log=log, num_threads=self.num_threads)
        self.active.append(_Active(index, child))
        self._show()

    def _read(self, active: _Active) -> None:
        entry = self.planned[active.index]
        for kind, value in active.child.read():
            if kind == "progress":
                active.event = value
                self._show()
                continue
            active.child.close()
            self.active.remove(active)
            self._settle(active.index, _outcome(entry, kind, value))

    def _settle(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        if outcome.record is not None:
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
        message = value if kind == "crash" else "interrupted from outside the sweep"
        error = {"type": "ChildProcessError", "message": f"the run's process was {message}", "traceback": ""}
    record = _failed_record(entry, error)
    return Outcome(entry, "failed", record, f"{error['type']}: {' '.join(error['message'].split())}")


def _failed_record(entry: PlannedRun, error: dict[str, str]) -> Record:
    """The failed record that the run left, or else one written in its place."""
    record = entry.ledger.read(entry.run_id)
    if record is not None and record["status"] == "failed" and record["error"]["message"] == error["message"]:
        return record
    record = {**opening(entry), "error": error}
    entry.ledger.write(record)
    return record
