"""Shows how far a sweep is: by a live bar on a terminal, by one line for each finished run anywhere else."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from randlora_core.experiment.sweeps.sweep import ELSEWHERE, Outcome, Snapshot

if TYPE_CHECKING:
    from rich.console import Console


def format_seconds(seconds: float | None) -> str:
    """`1:02:03`, `2:03`, or `-` for an unknown time."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_outcome(outcome: Outcome) -> str:
    """One line about a finished or failed run."""
    name = outcome.run.name
    if outcome.status == "failed":
        return f"{name}: failed: {outcome.error}"
    where = ", by another process" if outcome.status == "elsewhere" else ""
    return f"{name}: {_score(outcome)} in {format_seconds(outcome.record['time']['total_seconds'])}{where}"


def describe_outcomes(outcomes: Sequence[Outcome]) -> str:
    """What came of a sweep, such as "10 of 12 runs are done, 2 of them elsewhere; 2 failed"."""
    number = Counter(outcome.status for outcome in outcomes)
    elsewhere = f", {number['elsewhere']} of them elsewhere" if number["elsewhere"] else ""
    failed = f"; {number['failed']} failed" if number["failed"] else ""
    return f"{len(outcomes) - number['failed']} of {len(outcomes)} runs are done{elsewhere}{failed}"


def describe_event(event: dict[str, Any]) -> str:
    """The latest progress of a run under way: step, loss and speed, as far as the event tells them."""
    if not event:
        return "starting"
    if event == ELSEWHERE:
        return "in another process"
    if event.get("phase") == "evaluate":
        return "evaluating"
    parts = [f"step {event['step']}/{event['steps']}"] if "step" in event else []
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.3f}")
    if event.get("speed") is not None:
        parts.append(f"{event['speed']:.0f} {event['unit']}/s")
    return ", ".join(parts)


class PlainProgress:
    """Lines for logs and pipes: `[3/66] digits LoRA-4 seed 1: test 91.2 % in 0:07 (time left 8:12)`."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream if stream is not None else sys.stdout
        self._awaited: set[str] = set()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, snapshot: Snapshot) -> None:
        """Says once of every run that another process is doing that it is awaited; others get a line when done."""
        for name, event in snapshot.running:
            if event == ELSEWHERE and name not in self._awaited:
                self._awaited.add(name)
                print(f"{name}: under way in another process, whose result is awaited", file=self._stream, flush=True)

    def finish(self, outcome: Outcome, snapshot: Snapshot) -> None:
        """Prints the line of one run; runs finished earlier are not listed again."""
        if outcome.status == "skipped":
            return
        left = f" (time left {format_seconds(snapshot.seconds_left)})" if snapshot.done < snapshot.total else ""
        print(f"[{snapshot.done}/{snapshot.total}] {describe_outcome(outcome)}{left}", file=self._stream, flush=True)


class LiveProgress:
    """A bar for the whole sweep and a bar per run under way, above them one line for every run that is done."""

    def __init__(self, title: str, console: Console | None = None):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._whole = self._bars.add_task(title, total=None, note="")
        self._runs: dict[str, Any] = {}

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Moves the bars."""
        failed = f", {snapshot.failed} failed" if snapshot.failed else ""
        note = f"time left {format_seconds(snapshot.seconds_left)}{failed}"
        self._bars.update(self._whole, total=snapshot.total, completed=snapshot.done, note=note)
        running = dict(snapshot.running)
        for name in self._runs.keys() - running.keys():
            self._bars.remove_task(self._runs.pop(name))
        for name, event in running.items():
            if name not in self._runs:
                self._runs[name] = self._bars.add_task(f"  {name}", total=None, note="")
            self._bars.update(
                self._runs[name],
                total=event.get("steps"),
                completed=event.get("step", 0),
                note=describe_event(event),
            )

    def finish(self, outcome: Outcome, snapshot: Snapshot) -> None:
        """Prints the run's line above the bars; runs finished earlier only move the bar."""
        if outcome.status != "skipped":
            self._bars.console.print(describe_outcome(outcome), markup=False, highlight=False)
        self.update(snapshot)


def sweep_progress(title: str, stream: TextIO | None = None) -> PlainProgress | LiveProgress:
    """A live display where `stream` (default: standard output) is a terminal, plain lines otherwise."""
    stream = stream if stream is not None else sys.stdout
    return LiveProgress(title) if stream.isatty() else PlainProgress(stream)


def _score(outcome: Outcome) -> str:
    """The score of a finished run: the test's mean, else the validation's."""
    scores = outcome.record["scores"]
    if scores["mean"] is not None:
        return f"test {100 * scores['mean']:.1f} %"
    return f"validation {outcome.run.experiment.format_criterion(scores['validation'])}"
