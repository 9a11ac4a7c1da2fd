from typing import Literal

import pytest

from randlora_core.experiment.compose import CONFIGS, compose
from randlora_core.experiment.config import TrainingConfig
from randlora_core.experiment.sections import Names, OpenSection, Section, validated


class Inner(OpenSection):
    kind: Literal["a", "b"]


class Outer(Section):
    inner: Inner
    rate: float
    count: int | None = None
    names: str | Names | None = None
    on: bool = False


GOOD = {"inner": {"kind": "a"}, "rate": 1.0}


def test_values_are_taken_as_they_are_and_an_open_section_keeps_further_keys():
    values = {"inner": {"kind": "a", "rank": 3}, "rate": 2, "count": None, "names": ["x", "y"], "on": True}
    outer = validated(Outer, values)
    assert isinstance(outer.rate, float) and outer.rate == 2.0
    assert (outer.names, outer.on, outer.count) == (("x", "y"), True, None)
    assert outer.inner.kind == "a" and outer.inner.options == {"rank": 3}
    assert validated(Outer, outer.model_dump(mode="json")) == outer


def test_a_configuration_cannot_be_changed():
    outer = validated(Outer, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        outer.rate = 2.0


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"other": 1}, ["unknown setting 'other'", "accepted: inner, rate, count, names, on"]),
        ({"cuont": 1}, ["unknown setting 'cuont' (near: count)", "accepted: inner"]),
        ({"rate": "fast"}, ["rate='fast'; accepted: a valid number"]),
        ({"rate": True}, ["rate=True; accepted: a valid number"]),
        ({"rate": float("inf")}, ["rate=inf; accepted: a finite number"]),
        ({"rate": float("nan")}, ["rate=nan; accepted: a finite number"]),
        ({"count": 1.5}, ["count=1.5; accepted: a valid integer"]),
        ({"count": True}, ["count=True; accepted: a valid integer"]),
        ({"count": "3"}, ["count='3'; accepted: a valid integer"]),
        ({"on": 1}, ["on=1; accepted: a valid boolean"]),
        ({"names": 3}, ["names=3; accepted: a valid string", " or a valid tuple"]),
        ({"inner": {"kind": "c"}}, ["inner.kind='c'; accepted: 'a' or 'b'"]),
        ({"inner": 3}, ["inner=3; accepted: "]),
        ({"inner": {}}, ["setting 'inner.kind' is missing"]),
    ],
)
def test_anything_else_is_one_line_that_names_key_value_and_what_is_accepted(change, parts):
    with pytest.raises(ValueError) as caught:
        validated(Outer, {**GOOD, **change})
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_alternative_of_a_union_is_no_part_of_the_settings_name():
    with pytest.raises(ValueError) as caught:
        validated(Outer, {**GOOD, "names": [1]})
    assert all(line.startswith(("names=[1]", "names.0=1")) for line in str(caught.value).splitlines())


def test_every_mistake_has_a_line_and_the_file_in_front():
    with pytest.raises(ValueError) as caught:
        validated(Outer, {"inner": {"kind": "c"}, "rate": "x", "other": 1}, where="some.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(line.startswith("some.yaml: ") for line in lines)


def training(**changes):
    values = {
        "steps": 20,
        "epochs": None,
        "batch_size": 64,
        "accumulate": 1,
        "learning_rate": None,
        "rate_from": None,
        "weight_decay": 0.1,
        "clip": 1.0,
        "schedule": "cosine",
        "warmup_steps": 0,
        "keep_best": False,
        "precision": "fp32",
    }
    return validated(TrainingConfig, {**values, **changes})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": None}, "training.steps=None and training.epochs=None"),
        ({"epochs": 3}, "training.steps=20 and training.epochs=3"),
        ({"steps": 0}, "steps=0; accepted: greater than 0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"accumulate": 5}, "training.accumulate=5; accepted: a divisor of training.batch_size=64"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"schedule": "step"}, "schedule='step'; accepted: 'cosine' or 'linear'"),
        ({"precision": "fp8"}, "precision='fp8'; accepted: 'auto', 'bf16' or 'fp32'"),
    ],
)
def test_training_values_out_of_range_are_refused(change, named):
    with pytest.raises(ValueError) as caught:
        training(**change)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_epochs_become_steps_with_the_last_smaller_batch_counted():
    assert training(steps=None, epochs=3).num_steps(130) == 9
    assert training(steps=7).num_steps(130) == 7


def test_defaults_stand_in_the_yaml_files_alone():
    """The class has none, so that a setting taken out of the files is missed instead of guessed."""
    values = compose("vision_language", [], CONFIGS)["training"]
    for name, field in TrainingConfig.model_fields.items():
        assert name in values and (field.is_required() or field.default is None), name
