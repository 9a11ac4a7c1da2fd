import itertools

import pytest
from fake_runs import finished_record

from randlora_core.experiment.interface import MissingInputError
from randlora_core.experiment.planning import plan_run, plan_runs
from randlora_core.experiment.rates import LearningRate, build_config, choose_rate
from randlora_core.experiment.records.reading import collect_records


@pytest.fixture
def tune(tiny):
    """Commits a tuning: a file's name, overrides, and the validation score of every learning rate."""
    days = itertools.count(1)

    def commit(name, overrides, scores, *, seed=101, **changes):
        day = next(days)
        records = []
        for rate, score in scores.items():
            given = [*overrides, f"seed={seed}", f"training.learning_rate={rate}"]
            record = finished_record(plan_run(tiny, given), validation=score, test=(), **changes)
            record["created"] = f"2026-01-{day:02d}"
            records.append({**record, "status": "failed"} if score is None else record)
        collect_records(records, tiny.records / f"tuning_{name}.jsonl", statuses=("finished", "failed"))

    return commit


def rate_of(tiny, *overrides):
    return plan_run(tiny, overrides).learning_rate


def test_a_given_rate_comes_first_then_a_tuned_one_then_the_presets(tiny, tune):
    assert rate_of(tiny, "adapter=lora") == LearningRate(0.001, "preset")
    tune("some", ["adapter=lora"], {0.01: 0.5, 0.02: 0.9, 0.05: 0.7})
    tuned = rate_of(tiny, "adapter=lora")
    assert (tuned.value, tuned.source, tuned.tuned_for) == (0.02, "tuned", ())
    assert [entry["value"] for entry in tuned.grid] == [0.01, 0.02, 0.05]
    assert [entry["validation"] for entry in tuned.grid] == [0.5, 0.9, 0.7]
    assert rate_of(tiny, "training.learning_rate=0.3") == LearningRate(0.3, "config")
    assert rate_of(tiny, "adapter=zero_shot") == LearningRate(None, "none")
    with pytest.raises(ValueError, match=r"training\.learning_rate=None: 'VeRA-256' has no tuned and no preset one"):
        plan_run(tiny, ["adapter=vera", "adapter.learning_rate=null"])


def test_the_chosen_rate_is_part_of_the_run_and_of_its_record(tiny, tune):
    untuned = plan_run(tiny, [])
    tune("some", [], {0.02: 0.9})
    planned = plan_run(tiny, [])
    assert planned.recorded["training"]["learning_rate"] == 0.02 and planned.run_id != untuned.run_id
    assert planned.run_id == plan_run(tiny, ["training.learning_rate=0.02"]).run_id
    assert planned.learning_rate.recorded() == {
        "value": 0.02,
        "source": "tuned",
        "tuned_for": [],
        "grid": [{"value": 0.02, "validation": 0.9}],
    }


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=5",
        "training.batch_size=8",
        "adapter.rank=3",
        "adapter.alpha=7",
        "rule=difference",
        "adapter=vera",
    ],
)
def test_a_tuned_rate_is_taken_only_for_exactly_its_settings(tiny, tune, override):
    tune("some", [], {0.02: 0.9})
    assert rate_of(tiny, override).source == "preset"


@pytest.mark.parametrize(
    "override", ["seed=5", "evaluate.batch_size=3", "adapter.label=mine", "training.precision=bf16"]
)
def test_seed_label_and_number_format_are_none_of_them(tiny, tune, override):
    tune("some", [], {0.02: 0.9})
    assert (rate_of(tiny, override).value, rate_of(tiny, override).source) == (0.02, "tuned")


def test_the_rate_of_other_settings_is_taken_by_name(tiny, tune):
    tune("some", ["rule=difference"], {0.01: 0.5, 0.02: 0.9})
    rate = rate_of(tiny, "training.rate_from=['rule=difference']")
    assert (rate.value, rate.source, rate.tuned_for) == (0.02, "tuned_otherwise", ("rule=difference",))
    assert rate.recorded()["tuned_for"] == ["rule=difference"] and len(rate.grid) == 2
    assert "rule=difference" in rate.describe()
    assert rate_of(tiny, "training.rate_from=['rule=difference']", "training.learning_rate=0.3").source == "config"
    (missing,) = plan_runs(tiny, [["training.rate_from=['rule=difference']", "training.steps=5"]])
    assert missing.missing == "no learning rate has been tuned for rule=difference; tune it, or give one"


def test_other_settings_that_are_the_runs_own_make_no_difference(tiny, tune):
    tune("some", ["rule=difference"], {0.02: 0.9})
    rate = rate_of(tiny, "rule=difference", "training.rate_from=['rule=difference']")
    assert (rate.value, rate.source, rate.tuned_for) == (0.02, "tuned", ())


def test_a_run_may_insist_on_a_rate_tuned_for_itself(tiny, tune):
    with pytest.raises(MissingInputError, match="no learning rate has been tuned for these settings"):
        choose_rate(tiny, build_config(tiny, ["training.rate_from=[]"]), ["training.rate_from=[]"])
    tune("some", [], {0.02: 0.9})
    assert (rate_of(tiny, "training.rate_from=[]").value, rate_of(tiny, "training.rate_from=[]").source) == (
        0.02,
        "tuned",
    )


def test_the_runs_own_number_format_comes_first_then_the_newest(tiny, tune, monkeypatch):
    tune("half", ["training.precision=bf16"], {0.05: 0.9})
    tune("single", ["training.precision=fp32"], {0.02: 0.9})
    assert rate_of(tiny, "training.precision=bf16").value == 0.05
    assert rate_of(tiny, "training.precision=fp32").value == 0.02
    tune("newer", ["training.precision=bf16"], {0.01: 0.9})
    assert rate_of(tiny, "training.precision=bf16").value == 0.01
    assert rate_of(tiny, "training.precision=fp32").value == 0.02


@pytest.mark.parametrize(("precision", "value"), [("bf16", 0.05), ("fp32", 0.02)])
def test_so_it_does_for_a_rate_that_is_taken_by_name(tiny, tune, monkeypatch, precision, value):
    monkeypatch.setattr("randlora_core.experiment.planning.pick_precision", lambda name, device: precision)
    for name, rate in (("bf16", 0.05), ("fp32", 0.02)):
        config = ["rule=difference", f"training.precision={name}"]
        with monkeypatch.context() as patch:
            patch.setattr("randlora_core.experiment.planning.pick_precision", lambda name, device: name)
            tune(name, config, {rate: 0.9})
    assert rate_of(tiny, "training.precision=auto", "training.rate_from=['rule=difference']").value == value


def test_two_comparisons_may_tune_the_same_row(tiny, tune):
    """Their files are tunings of their own: records are neither mixed nor found to be there twice."""
    tune("one", [], {0.01: 0.5, 0.02: 0.9})
    tune("two", [], {0.02: 0.9, 0.05: 0.95})
    rate = rate_of(tiny)
    assert rate.value == 0.05 and [entry["value"] for entry in rate.grid] == [0.02, 0.05]


def test_a_rate_whose_run_failed_is_in_the_grid_but_never_chosen(tiny, tune):
    tune("some", [], {0.01: 0.5, 0.02: 0.9, 0.05: None})
    rate = rate_of(tiny)
    assert rate.value == 0.02 and rate.grid[-1] == {"value": 0.05, "validation": None}
    tune("newer", [], {0.05: None})
    assert rate_of(tiny).value == 0.02  # a tuning of which every run failed chooses nothing
    tune("some", [], {0.05: None})
    assert rate_of(tiny).source == "preset"


def test_the_test_sets_have_no_say(tiny, tune):
    good, bad = ({"test": (("near", share), ("far", share))} for share in (0.1, 1.0))
    records = []
    for rate, validation, test in ((0.01, 0.9, good), (0.02, 0.8, bad)):
        planned = plan_run(tiny, ["seed=101", f"training.learning_rate={rate}"])
        records.append(finished_record(planned, validation, **test))
    collect_records(records, tiny.records / "tuning_some.jsonl")
    assert rate_of(tiny).value == 0.01


def test_only_tunings_are_read(tiny):
    planned = plan_run(tiny, ["training.learning_rate=0.02"])
    collect_records([finished_record(planned)], tiny.records / "some.jsonl")
    assert rate_of(tiny).source == "preset"


def test_a_changed_file_is_read_again(tiny, tune):
    tune("some", [], {0.02: 0.9})
    assert rate_of(tiny).value == 0.02
    tune("some", [], {0.05: 0.9})
    assert rate_of(tiny).value == 0.05


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (LearningRate(None, "none"), "nothing to choose"),
        (LearningRate(0.5, "config"), "0.5 (given)"),
        (LearningRate(1e-5, "preset"), "1e-05 (the method's preset, not tuned for these settings)"),
        (LearningRate(0.5, "tuned", (), ({}, {})), "0.5 (tuned for exactly these settings, 2 values tried)"),
        (LearningRate(0.5, "tuned_otherwise", ("a=1", "b=2")), "0.5 (tuned for other settings: a=1 b=2)"),
    ],
)
def test_a_rate_says_where_it_comes_from(rate, said):
    assert rate.describe() == said
