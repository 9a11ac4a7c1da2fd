from dataclasses import replace

import pytest
import torch
from fake_runs import finished_record

from randlora_core.experiment.interface import Work
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.sweeps import estimates as module
from randlora_core.experiment.sweeps.estimates import RunEstimates, estimate_by_work
from randlora_core.experiment.sweeps.flops import measured_rate


@pytest.fixture
def plan(tiny):
    return lambda *overrides: plan_run(tiny, overrides)


@pytest.fixture
def timed(plan):
    """The record of a run that took so many seconds and so much memory."""

    def make(seconds, peak, *overrides):
        times = {"total_seconds": seconds, "train_seconds": 1.0}
        return finished_record(plan(*overrides), time=times, memory={"peak_bytes": peak, "counter": ""})

    return make


def found(estimates, planned):
    estimate = estimates.estimate(planned)
    return estimate.seconds, estimate.peak_bytes


def test_estimates_prefer_runs_of_the_same_method_on_the_same_data(plan, timed):
    estimates = RunEstimates([timed(5.0, 10, "seed=1"), timed(7.0, 30, "seed=2"), timed(50.0, 40, "rule=difference")])
    estimates.add(timed(20.0, 50, "adapter=dora"))
    estimates.add({**timed(900.0, 60, "seed=3"), "status": "failed"})
    assert found(estimates, plan("seed=9", "training.learning_rate=0.5")) == (6.0, 30)
    assert found(estimates, plan("rule=difference", "seed=9")) == (50.0, 40)


def test_without_one_other_data_then_other_methods_are_asked(plan, timed):
    estimates = RunEstimates([timed(5.0, 10), timed(20.0, 50, "adapter=dora"), timed(7.0, 20)])
    assert found(estimates, plan("rule=difference")) == (6.0, 20)  # the same method on other data
    assert found(estimates, plan("adapter=vera")) == (7.0, 50)  # other methods on the same data
    assert found(estimates, plan("adapter=vera", "rule=difference")) == (None, None)
    assert found(estimates, plan("training.steps=400")) == (None, None)
    assert found(estimates, plan("training.batch_size=4")) == (None, None)


def test_what_is_not_trained_is_no_measure_for_what_is(plan, timed):
    estimates = RunEstimates([timed(1.0, 10, "adapter=zero_shot")])
    assert found(estimates, plan("adapter=lora")) == (None, None)
    assert found(estimates, plan("adapter=zero_shot", "seed=5")) == (1.0, 10)
    estimates = RunEstimates([timed(9.0, 10, "adapter=lora")])
    assert found(estimates, plan("adapter=zero_shot")) == (None, None)


def test_time_left_counts_what_waits_and_the_rest_of_what_runs(plan, timed):
    estimates = RunEstimates([timed(8.0, 1)])
    planned = plan("seed=2")
    assert estimates.seconds_left([planned, planned], [(planned, 0.75)], 1) == 18.0
    assert estimates.seconds_left([planned, planned], [(planned, 0.75)], 2) == 9.0
    assert estimates.seconds_left([], [], 1) == 0
    assert estimates.seconds_left([planned, plan("training.steps=9")], [], 1) is None


def test_runs_of_another_length_tell_by_their_examples_per_second(tiny, plan):
    times = {"total_seconds": 12.0, "train_seconds": 10.0, "examples_per_second": 8.0}
    estimates = RunEstimates([finished_record(plan("adapter=lora"), time=times)])
    longer = plan("training.steps=100", "training.batch_size=4")
    assert found(estimates, longer) == (100 * 4 / 8.0 + 2.0, 100_000_000)
    assert estimates.estimate(longer).source == "records"
    assert found(estimates, plan("training.steps=100", "adapter=vera")) == (None, None)
    assert found(estimates, plan("training.steps=100", "training.precision=bf16")) == (None, None)
    epochs = ["training.steps=null", "training.epochs=3"]
    assert found(estimates, plan(*epochs)) == (None, None)
    counted = replace(tiny, count_work=lambda config: Work(1e9, 0, 0, 0, num_examples=64))
    assert found(estimates, plan_run(counted, epochs)) == (64 / 8.0 + 2.0, 100_000_000)


def test_records_of_other_hardware_are_left_out(plan, timed):
    ours, theirs = timed(5.0, 10), timed(50.0, 20)
    theirs = {**theirs, "provenance": {**theirs["provenance"], "hardware": {"cpu": "some CPU", "gpu": "some GPU"}}}
    hardware = ours["provenance"]["hardware"]
    assert found(RunEstimates([theirs, ours], hardware), plan("seed=3")) == (5.0, 10)
    assert found(RunEstimates([theirs], hardware), plan("seed=3")) == (None, None)
    assert found(RunEstimates([theirs]), plan("seed=3")) == (50.0, 20)


@pytest.mark.parametrize(
    ("overrides", "seconds", "num_bytes"),
    [
        ("adapter=lora", (2 * 8e9 + 1e9) / 1e9, 100 + 40),
        ("adapter=randlora", (3 * 8e9 + 1e9) / 1e9, 100 + 40),
        ("adapter=full", (3 * 8e9 + 1e9) / 1e9, 4 * 100 + 40),
        ("adapter=lora training.precision=bf16", 17.0, 100 + 30),
    ],
)
def test_without_records_the_work_and_a_measured_rate_tell(tiny, monkeypatch, overrides, seconds, num_bytes):
    monkeypatch.setattr(module, "measured_rate", lambda device, precision, threads: 1e9)
    counted = replace(tiny, count_work=lambda config: Work(8e9, 1e9, 100, 40, 64))
    estimate = estimate_by_work(plan_run(counted, overrides.split()), torch.device("cpu"), 1)
    assert (estimate.seconds, estimate.peak_bytes, estimate.source) == (seconds, num_bytes, "FLOPs")
    unknown = plan_run(replace(tiny, count_work=lambda config: None), overrides.split())
    assert estimate_by_work(unknown, torch.device("cpu"), 1).source is None
    assert estimate_by_work(plan_run(tiny, overrides.split()), torch.device("cpu"), 1).source is None


def test_the_rate_is_that_of_a_product_and_leaves_the_threads_alone(monkeypatch):
    threads = torch.get_num_threads()
    assert 1e8 < measured_rate(torch.device("cpu"), "fp32", 1) < 1e14  # from a toy processor to beyond any
    assert torch.get_num_threads() == threads
