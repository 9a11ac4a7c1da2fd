"""The tiny experiment and results on it, for the tests of reports."""

import pytest
from made_up import METHODS, NOT_TUNED, NOTHING, collect, record_of

from randlora_core.experiment.planning import plan_runs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tiny_experiment import make_experiment

    return make_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def results(tiny):
    """Zero-shot once, LoRA-4 everywhere, RandLoRA-10 without a seed on difference, VeRA-256 on sum only."""
    lists = [
        [*overrides, f"rule={rule}", f"seed={seed}"]
        for rule in ("sum", "difference")
        for overrides in METHODS.values()
        for seed in (1, 2, 3)
    ]
    planned = plan_runs(tiny, lists)
    records = []
    for entry in planned:
        label, rule, seed = entry.label, entry.config.rule, entry.config.seed
        accuracy = (0.7, 0.75, 0.8)[seed - 1] - (0.2 if rule == "difference" else 0)
        if label == "Zero-shot":
            nothing = {"trainable": 0, "total": 5000, "per_layer": {}}
            records.append(record_of(entry, 0.25, parameters=nothing, learning_rate=NOTHING))
        elif label == "LoRA-4":
            records.append(record_of(entry, accuracy))
        elif label == "RandLoRA-10" and rule == "sum":
            records.append(record_of(entry, accuracy + 0.1, learning_rate=NOT_TUNED))
        elif (label == "RandLoRA-10" and seed != 2) or (label == "VeRA-256" and rule == "sum"):
            records.append(record_of(entry, 0.5))
        elif label == "VeRA-256" and seed == 1:
            records.append({**record_of(entry), "status": "failed", "error": {"type": "E", "message": "m"}})
    return collect(planned, records)
