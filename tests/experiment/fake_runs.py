"""A stand-in for an experiment: runs that finish, fail, crash, hang or report the process they run in."""

import hashlib
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
from randlora_core.experiment.ledger import Ledger
from randlora_core.experiment.predictions import encode_predictions

NUM_SAMPLES = 40
LABELS = np.arange(NUM_SAMPLES) % 4


def parse(overrides):
    return dict(text.split("=", 1) for text in overrides)


def make_record(label, dataset, seed, *, accuracy=0.75, rate=0.001, source="tuned", validation=0.5, **changes):
    """A finished record of which exactly `accuracy` of the samples are right, the first ones."""
    right = round(accuracy * NUM_SAMPLES)
    predicted = np.where(np.arange(NUM_SAMPLES) < right, LABELS, (LABELS + 1) % 4)
    identity = hashlib.sha256(repr((label, dataset, seed, rate)).encode()).hexdigest()[:16]
    record = {
        "schema": 1,
        "protocol": 1,
        "run_id": identity,
        "experiment": "fake",
        "status": "finished",
        "error": None,
        "created": f"2026-01-01T00:00:0{seed % 10}+00:00",
        "config": make_config(label, dataset, seed, rate),
        "data": {"name": dataset, "fingerprint": "0", "sizes": {"test": 40}, "short_classes": {}, "is_subset": False},
        "weights": {"backbone": "tiny", "sha256": "0"},
        "provenance": {"commit": "a" * 40, "dirty": False, "hardware": {"cpu": "some CPU", "threads": 2, "gpu": None}},
        "parameters": {"trainable": 1000, "total": 5000, "per_layer": {}},
        "learning_rate": {"value": rate, "source": source, "grid": [{"value": rate, "validation_accuracy": 0.5}] * 7},
        "result": {"test_accuracy": right / NUM_SAMPLES, "validation_accuracy": validation, "test_size": NUM_SAMPLES},
        "predictions": encode_predictions(predicted, LABELS),
        "time": {"train_seconds": 4.0 + seed, "total_seconds": 6.0},
        "memory": {"peak_bytes": 100_000_000 + seed, "counter": "VmHWM"},
    }
    return {**record, **changes}


def make_config(label, dataset, seed, rate):
    return {
        "adapter": {"method": "lora", "label": label},
        "backbone": {"name": "tiny"},
        "dataset": {"name": dataset},
        "shots": None,
        "fraction": None,
        "seed": seed,
        "training": {"steps": 4, "epochs": None, "batch_size": 8, "precision": "fp32", "learning_rate": rate},
    }


def described(overrides):
    values = parse(overrides)
    return make_record(
        values.get("label", "LoRA-4"),
        values.get("dataset", "digits"),
        int(values.get("seed", 1)),
        rate=float(values.get("training.learning_rate", 0.001)),
    )


def identify(overrides):
    values = parse(overrides)
    if values.get("dataset") == "nowhere":
        raise ValueError("unknown dataset 'nowhere'; accepted: digits")
    record = described(overrides)
    path = Ledger(Path(values["results"]) / "fake").path(record["run_id"])
    complete = values.get("complete") != "no"
    return {"run_id": record["run_id"], "config": record["config"], "path": str(path), "complete": complete}


def run(overrides, on_progress=None):
    """Does what the override `do` says and notes in the file `calls` that it was asked."""
    values = parse(overrides)
    ledger = Ledger(Path(values["results"]) / "fake")
    record = described(overrides)
    with open(Path(values["results"]) / "calls", "a") as file:
        file.write(f"{record['run_id']} {os.getpid()}\n")
    on_progress({"step": 1, "steps": 4, "loss": 1.5, "images_per_second": 20.0, "phase": "train"})
    action = (Path(values["results"]) / "do").read_text() if values.get("do") == "file" else values.get("do", "finish")
    ACTIONS[action](record)
    if action == "refuse":
        raise SystemExit(3)
    ledger.write(record)
    return record


def score_by_rate(overrides, on_progress=None):
    """Finishes with a validation accuracy that has its maximum at the rate given by the override `best`."""
    values = parse(overrides)
    record = described(overrides)
    distance = abs(np.log(record["config"]["training"]["learning_rate"] / float(values["best"])))
    record["result"] = {"test_accuracy": None, "validation_accuracy": float(np.exp(-distance)), "test_size": None}
    record["predictions"] = None
    Ledger(Path(values["results"]) / "fake").write(record)
    return record


def inspect_process(name, on_progress=None):
    """The modules loaded before the call, the server's threads, and torch's view of the fork."""
    loaded = name in sys.modules
    tasks = Path(f"/proc/{os.getppid()}/task")
    threads = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    import torch

    product = torch.ones(64, 64) @ torch.ones(64, 64)
    return {"loaded": loaded, "threads": threads, "sum": product.sum().item(), "num_threads": torch.get_num_threads()}


def wait_for_ever(started, on_progress=None):
    """Tells its process id, then waits; on an interruption leaves a file, as a run leaves its state."""
    try:
        on_progress({"pid": os.getpid()})
        threading.Event().wait()
    except KeyboardInterrupt:
        Path(started).write_text("saved")
        raise


def _fail(record):
    raise RuntimeError("the loss is not\na number")


def _die(record):
    print("about to vanish", flush=True)
    os._exit(7)


def _hang(record):
    threading.Event().wait()


ACTIONS = {
    "finish": lambda record: None,
    "fail": _fail,
    "die": _die,
    "killed": lambda record: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
    "refuse": lambda record: None,
}
