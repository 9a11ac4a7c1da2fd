import pytest
from fake_runs import finished_record

from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.sweeps.estimates import RunEstimates


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
