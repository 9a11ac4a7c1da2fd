import io
from pathlib import Path

import pytest
from fake_experiment import make_config, make_record
from randlora_core.experiment.estimates import RunEstimates
from randlora_core.experiment.progress import (
    LiveProgress,
    PlainProgress,
    describe_event,
    format_seconds,
    sweep_progress,
)
from randlora_core.experiment.sweep import Outcome, PlannedRun, Snapshot
from rich.console import Console


def outcome(status, seed=1, **changes):
    record = make_record("LoRA-4", "digits", seed, **changes)
    run = PlannedRun((), record["run_id"], record["config"], Path("x.json"))
    return Outcome(run, status, record, "E: bad" if status == "failed" else None)


def snapshot(done, total=4, seconds_left=None, running=()):
    return Snapshot(total, done, 0, running, seconds_left)


def test_a_log_gets_one_plain_line_per_run():
    stream = io.StringIO()
    with sweep_progress("comparison", stream) as display:
        assert isinstance(display, PlainProgress)
        display.finish(outcome("skipped"), snapshot(1))
        display.update(snapshot(1, running=(("digits LoRA-4 seed 1", {"step": 1, "steps": 4}),)))
        display.finish(outcome("finished"), snapshot(2, seconds_left=75.0))
        display.finish(outcome("failed", 2), snapshot(3))
        display.finish(outcome("finished", 3, accuracy=1.0), snapshot(4, seconds_left=0.0))
    assert stream.getvalue().splitlines() == [
        "[2/4] digits LoRA-4 seed 1: test 75.0 % in 0:06 (time left 1:15)",
        "[3/4] digits LoRA-4 seed 2: failed: E: bad (time left -)",
        "[4/4] digits LoRA-4 seed 3: test 100.0 % in 0:06",
    ]


def test_a_tuning_run_shows_its_validation_accuracy():
    done = outcome("finished")
    done.record["result"]["test_accuracy"] = None
    stream = io.StringIO()
    PlainProgress(stream).finish(done, snapshot(4))
    assert "validation 50.0 %" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_bars_with_loss_speed_and_time_left():
    assert isinstance(sweep_progress("comparison", Terminal()), LiveProgress)
    console = Console(file=io.StringIO(), width=160)
    display = LiveProgress("comparison", console)
    event = {"phase": "train", "step": 3, "steps": 25, "loss": 1.2345, "images_per_second": 210.4}
    with display:
        display.update(snapshot(1, seconds_left=130.0, running=(("digits LoRA-4 seed 1", event),)))
        console.print(display._bars.get_renderable())
        display.finish(outcome("finished", 3), snapshot(2, running=(("digits LoRA-4 seed 2", {}),)))
        console.print(display._bars.get_renderable())
    first, rest = console.file.getvalue().split("digits LoRA-4 seed 3: test 75.0 % in 0:06")
    for text in ("comparison", "1/4", "time left 2:10", "digits LoRA-4 seed 1", "3/25", "loss 1.234", "210 images/s"):
        assert text in first
    assert "2/4" in rest and "digits LoRA-4 seed 2" in rest and "starting" in rest and "seed 1" not in rest


@pytest.mark.parametrize(
    "seconds, text", [(None, "-"), (0.2, "0:00"), (59.7, "1:00"), (125, "2:05"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_times_are_readable(seconds, text):
    assert format_seconds(seconds) == text


def test_events_are_described_as_far_as_they_go():
    assert describe_event({}) == "starting"
    assert describe_event({"phase": "evaluate", "step": 4}) == "evaluating"
    assert describe_event({"phase": "train", "step": 1, "steps": 4, "loss": 2.0, "images_per_second": None}) == (
        "step 1/4, loss 2.000"
    )


def timed(label, dataset, seed, seconds, peak=1):
    return make_record(
        label, dataset, seed, time={"total_seconds": seconds, "train_seconds": 1.0}, memory={"peak_bytes": peak}
    )


def test_estimates_prefer_runs_of_the_same_method():
    estimates = RunEstimates([timed("LoRA-4", "digits", 1, 5.0, 10), timed("LoRA-4", "digits", 2, 7.0, 30)])
    estimates.add(timed("DoRA-16", "digits", 1, 20.0, 50))
    estimates.add({**timed("LoRA-4", "digits", 3, 900.0), "status": "failed"})
    known = estimates.estimate(make_config("LoRA-4", "digits", 9, 0.5))
    assert (known.seconds, known.peak_bytes) == (6.0, 30)
    alike = estimates.estimate(make_config("VeRA-256", "digits", 1, 0.5))
    assert (alike.seconds, alike.peak_bytes) == (7.0, 50)
    unknown = estimates.estimate(make_config("LoRA-4", "characters", 1, 0.5))
    assert (unknown.seconds, unknown.peak_bytes) == (None, None)
    longer = make_config("LoRA-4", "digits", 1, 0.5)
    longer["training"]["steps"] = 400
    assert estimates.estimate(longer).seconds is None


def test_time_left_counts_what_waits_and_the_rest_of_what_runs():
    estimates = RunEstimates([timed("LoRA-4", "digits", 1, 8.0)])
    config = make_config("LoRA-4", "digits", 2, 0.001)
    assert estimates.seconds_left([config, config], [(config, 0.75)], 1) == 18.0
    assert estimates.seconds_left([config, config], [(config, 0.75)], 2) == 9.0
    assert estimates.seconds_left([], [], 1) == 0
    assert estimates.seconds_left([config, make_config("LoRA-4", "characters", 2, 0.1)], [], 1) is None
