"""Made-up records of the tiny experiment, as the tests of reports collect them."""

import numpy as np
from fake_runs import LABELS, finished_record

from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.records.predictions import encode_predictions
from randlora_core.experiment.reports.results import collect_results

METHODS = {
    "Zero-shot": ["adapter=zero_shot"],
    "LoRA-4": ["adapter=lora", "adapter.rank=4"],
    "RandLoRA-10": ["adapter=randlora", "adapter.rank=10"],
    "VeRA-256": ["adapter=vera"],
}
NOT_TUNED = {"value": 0.001, "source": "preset", "tuned_for": [], "grid": []}
NOTHING = {"value": None, "source": "none", "tuned_for": [], "grid": []}
TUNED = {"value": 0.001, "source": "tuned", "tuned_for": [], "grid": [{"value": 0.001, "validation": 0.5}] * 7}
SUM, DIFFERENCE = ("sum",), ("difference",)


def plan(tiny, label, rule, seed, *overrides):
    return plan_run(tiny, [*METHODS[label], f"rule={rule}", f"seed={seed}", *overrides])


def record_of(planned, accuracy=0.75, **changes):
    """A record with one test set unless said otherwise."""
    seed = planned.config.seed
    usual = {
        "learning_rate": TUNED,
        "time": {"train_seconds": 4.0 + seed, "total_seconds": 6.0},
        "memory": {"peak_bytes": 100_000_000 + seed, "counter": "VmHWM"},
        "provenance": {"commit": "a" * 40, "dirty": False, "hardware": {"cpu": "some CPU", "threads": 2, "gpu": None}},
    }
    return finished_record(planned, test=(("test", accuracy),), **{**usual, **changes})


def collect(planned, records, name="default"):
    known = {record["run_id"]: record for record in records}
    return collect_results(name, planned, lambda entry: known.get(entry.run_id))


def with_predictions(planned, predicted, labels=LABELS):
    record = record_of(planned, float(np.mean(predicted == labels)))
    record["scores"]["test"]["test"]["predictions"] = encode_predictions(predicted, labels)
    return record


def on_machine(name, counter="VmHWM"):
    """What a record of a run on another processor, or by another counter of memory, says otherwise."""
    hardware = {"cpu": name, "threads": 2, "gpu": None}
    return {
        "provenance": {"commit": "a" * 40, "dirty": False, "hardware": hardware},
        "memory": {"peak_bytes": 100_000_000, "counter": counter},
    }


def by_method(table):
    return {row[0]: row[1:] for row in table.rows}
