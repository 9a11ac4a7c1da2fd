import numpy as np
import pytest
from tiny_experiment import TinyTask

from randlora_core.experiment.interface import Axis, find_experiment
from randlora_core.experiment.records.predictions import decode_predictions
from randlora_core.experiment.running import score_section


def score(value, **more):
    from randlora_core.experiment.interface import Score

    return Score(value, 4, **more)


def test_scores_are_kept_by_test_set_and_averaged_only_where_all_are_there():
    scores = {"a": score(0.5), "b": score(0.25, details={"unreadable": 0.1})}
    whole = score_section(scores, ("a", "b"))
    assert whole["mean"] == 0.375
    assert whole["test"]["a"] == {"value": 0.5, "size": 4, "predictions": None}
    assert whole["test"]["b"]["details"] == {"unreadable": 0.1}
    for found, sets in (({"a": scores["a"]}, ("a", "b")), (scores, ("a", "b", "c")), (scores, ("a",)), ({}, ())):
        assert score_section(found, sets)["mean"] is None


def test_predictions_travel_with_the_score():
    predicted, labels = np.array([1, 0, 2, 3]), np.array([1, 0, 2, 2])
    section = score_section({"a": score(0.75, predicted=predicted, labels=labels)}, ("a",))
    found = decode_predictions(section["test"]["a"]["predictions"])
    assert np.array_equal(found[0], predicted) and np.array_equal(found[1], labels)


def test_an_axis_is_a_setting_or_the_name_of_a_group():
    config = {"rule": "sum", "backbone": {"name": "tiny", "width": 2}, "shots": None}
    assert Axis("rule").value(config) == "sum" and Axis("backbone").value(config) == "tiny"
    assert Axis("shots").value(config) is None


def test_a_point_is_described_by_what_there_is_to_say(tiny):
    import dataclasses

    axes = (Axis("rule"), Axis("shots", lambda shots: "" if shots is None else f"{shots} shots"))
    several = dataclasses.replace(tiny, axes=axes)
    assert several.point({"rule": "sum", "shots": 4}) == ("sum", 4)
    assert several.describe(("sum", 4)) == "sum, 4 shots" and several.describe(("sum", None)) == "sum"


def test_criteria_are_shown_as_they_are(tiny):
    import dataclasses

    assert tiny.format_criterion(0.512) == "51.2 %"
    assert dataclasses.replace(tiny, criterion="negative loss").format_criterion(-1.2345) == "-1.234"


def test_an_experiment_is_found_by_the_name_of_its_package(tmp_path, monkeypatch):
    (tmp_path / "found_by_name").mkdir()
    (tmp_path / "found_by_name" / "experiment.py").write_text("EXPERIMENT = 'it'\n")
    (tmp_path / "broken_inside").mkdir()
    (tmp_path / "broken_inside" / "experiment.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_experiment("found_by_name") == "it"
    with pytest.raises(ValueError, match="unknown experiment 'nowhere_to_be_found'; accepted: a package"):
        find_experiment("nowhere_to_be_found")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        find_experiment("broken_inside")


def test_validation_is_the_mean_over_its_sets_unless_the_task_says_otherwise():
    task = TinyTask.__new__(TinyTask)
    task.evaluate = lambda split, device, precision: {"a": score(0.5), "b": score(0.25)} if split == "validation" else 0
    assert task.validate(None, "fp32") == 0.375
    with pytest.raises(NotImplementedError, match="TinyTask solves no method"):
        task.solve(None, "fp32")
