import io

import pytest
from fake_runs import finished_record
from rich.console import Console

from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.sweeps.progress import (
    LiveProgress,
    PlainProgress,
    describe_event,
    describe_outcomes,
    format_seconds,
    sweep_progress,
)
from randlora_core.experiment.sweeps.sweep import ELSEWHERE, Outcome, Snapshot


@pytest.fixture
def outcome(tiny):
    def make(status, seed=1, accuracy=0.75, **changes):
        planned = plan_run(tiny, [f"seed={seed}", "adapter.rank=4"])
        record = finished_record(planned, test=(("near", accuracy), ("far", accuracy)), **changes)
        return Outcome(planned, status, record, "E: bad" if status == "failed" else None)

    return make


def snapshot(done, total=4, seconds_left=None, running=()):
    return Snapshot(total, done, 0, running, seconds_left)


def test_a_log_gets_one_plain_line_per_run(outcome):
    stream = io.StringIO()
    with sweep_progress("comparison", stream) as display:
        assert isinstance(display, PlainProgress)
        display.finish(outcome("skipped"), snapshot(1))
        display.update(snapshot(1, running=(("sum LoRA-4 seed 1", {"step": 1, "steps": 4}),)))
        display.finish(outcome("finished"), snapshot(2, seconds_left=75.0))
        display.finish(outcome("failed", 2), snapshot(3))
        display.finish(outcome("finished", 3, accuracy=1.0), snapshot(4, seconds_left=0.0))
    assert stream.getvalue().splitlines() == [
        "[2/4] sum LoRA-4 seed 1: test 75.0 % in 0:06 (time left 1:15)",
        "[3/4] sum LoRA-4 seed 2: failed: E: bad (time left -)",
        "[4/4] sum LoRA-4 seed 3: test 100.0 % in 0:06",
    ]


def test_a_log_says_once_which_runs_of_other_processes_are_awaited(outcome):
    stream = io.StringIO()
    display = PlainProgress(stream)
    for _ in range(3):
        display.update(snapshot(1, running=(("sum LoRA-4 seed 1", ELSEWHERE), ("sum LoRA-4 seed 2", {}))))
    display.finish(outcome("elsewhere"), snapshot(4))
    assert stream.getvalue().splitlines() == [
        "sum LoRA-4 seed 1: under way in another process, whose result is awaited",
        "[4/4] sum LoRA-4 seed 1: test 75.0 % in 0:06, by another process",
    ]


def test_what_came_of_a_sweep_is_told_in_a_line(outcome):
    statuses = ["finished", "skipped", "elsewhere", "elsewhere", "failed"]
    outcomes = [outcome(status) for status in statuses]
    assert describe_outcomes(outcomes) == "4 of 5 runs are done, 2 of them elsewhere; 1 failed"
    assert describe_outcomes(outcomes[:2]) == "2 of 2 runs are done"


def test_a_run_without_all_test_sets_shows_its_validation_score(outcome):
    done = outcome("finished")
    for scores in ({"test": {}, "mean": None}, {"test": {"near": {"value": 0.9}}, "mean": None}):
        done.record["scores"] = {"validation": 0.5, **scores}
        stream = io.StringIO()
        PlainProgress(stream).finish(done, snapshot(4))
        assert "validation 50.0 %" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_bars_with_loss_speed_and_time_left(outcome):
    assert isinstance(sweep_progress("comparison", Terminal()), LiveProgress)
    console = Console(file=io.StringIO(), width=160)
    display = LiveProgress("comparison", console)
    event = {"phase": "train", "step": 3, "steps": 25, "loss": 1.2345, "speed": 210.4, "unit": "vectors"}
    with display:
        display.update(snapshot(1, seconds_left=130.0, running=(("sum LoRA-4 seed 1", event),)))
        console.print(display._bars.get_renderable())
        display.finish(outcome("finished", 3), snapshot(2, running=(("sum LoRA-4 seed 2", {}),)))
        console.print(display._bars.get_renderable())
    first, rest = console.file.getvalue().split("sum LoRA-4 seed 3: test 75.0 % in 0:06")
    for text in ("comparison", "1/4", "time left 2:10", "sum LoRA-4 seed 1", "3/25", "loss 1.234", "210 vectors/s"):
        assert text in first
    assert "2/4" in rest and "sum LoRA-4 seed 2" in rest and "starting" in rest and "seed 1" not in rest


@pytest.mark.parametrize(
    "seconds, text", [(None, "-"), (0.2, "0:00"), (59.7, "1:00"), (125, "2:05"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_times_are_readable(seconds, text):
    assert format_seconds(seconds) == text


def test_events_are_described_as_far_as_they_go():
    assert describe_event({}) == "starting"
    assert describe_event(ELSEWHERE) == "in another process"
    assert describe_event({"phase": "evaluate", "step": 4}) == "evaluating"
    event = {"phase": "train", "step": 1, "steps": 4, "loss": 2.0, "speed": None, "unit": "vectors"}
    assert describe_event(event) == "step 1/4, loss 2.000"
