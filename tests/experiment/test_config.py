from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from randlora_core.experiment.config import REST, TrainingConfig, from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    options: dict[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float
    count: int | None = None
    names: str | tuple[str, ...] | None = None
    on: bool = False


def test_values_round_trip_and_rest_takes_the_remaining_keys():
    values = {"inner": {"kind": "a", "rank": 3}, "rate": 2, "count": None, "names": ["x", "y"], "on": True}
    outer = from_dict(Outer, values)
    assert outer == Outer(Inner("a", {"rank": 3}), 2.0, None, ("x", "y"), True)
    assert isinstance(outer.rate, float)
    assert from_dict(Outer, to_dict(outer)) == outer
    assert to_dict(outer)["inner"] == {"kind": "a", "rank": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": 1}, "unknown key 'other'; accepted: inner, rate, count, names, on"),
        ({"rate": "fast"}, "rate='fast' is not a finite number"),
        ({"rate": True}, "rate=True is not a finite number"),
        ({"rate": float("inf")}, "rate=inf is not a finite number"),
        ({"rate": float("nan")}, "rate=nan is not a finite number"),
        ({"count": 1.5}, "count=1.5 is not an integer or null"),
        ({"count": True}, "count=True is not an integer or null"),
        ({"on": 1}, "on=1 is not true or false"),
        ({"names": [1]}, "names[0]=1 is not a name"),
        ({"inner": {"kind": "c"}}, "inner.kind='c' is not one of a, b"),
        ({"inner": 3}, "inner: 3 is not a mapping"),
        ({"inner": {}}, "missing key 'inner.kind'"),
    ],
)
def test_anything_else_is_one_line_that_names_key_value_and_what_is_accepted(change, message):
    with pytest.raises(ValueError) as caught:
        from_dict(Outer, {"inner": {"kind": "a"}, "rate": 1.0, **change})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": None}, "training.epochs=None"),
        ({"epochs": 3}, "training.steps=20"),
        ({"steps": 0}, "positive"),
        ({"batch_size": 0}, "training.batch_size=0"),
        ({"accumulate": 5}, "training.accumulate=5"),
        ({"learning_rate": 0.0}, "training.learning_rate=0.0"),
        ({"weight_decay": -1.0}, "training.weight_decay=-1.0"),
        ({"clip": 0.0}, "training.clip=0.0"),
        ({"crop": 0.0}, "training.crop=0.0"),
    ],
)
def test_training_values_out_of_range_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        TrainingConfig(**change)


def test_epochs_become_steps_with_the_last_smaller_batch_counted():
    assert TrainingConfig(steps=None, epochs=3, batch_size=64).num_steps(130) == 9
    assert TrainingConfig(steps=7).num_steps(130) == 7
