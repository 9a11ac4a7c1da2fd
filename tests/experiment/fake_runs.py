"""Records that no run has made, and runs that finish, fail, crash, hang or report the process they run in."""

import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from randlora_core.experiment.interface import Score
from randlora_core.experiment.running import opening, score_section
from randlora_core.experiment.sweeps import forkserver

NUM_SAMPLES = 40
LABELS = np.arange(NUM_SAMPLES) % 4


def predictions(accuracy):
    """Predictions of which exactly this share is right, the first ones."""
    right = round(accuracy * NUM_SAMPLES)
    return np.where(np.arange(NUM_SAMPLES) < right, LABELS, (LABELS + 1) % 4)


def scores_of(test, validation=0.5, sets=None):
    """The record's section on the scores; `test` gives each set's accuracy, or its predictions."""
    made = {}
    for name, value in test.items():
        predicted = predictions(value) if np.isscalar(value) else value
        made[name] = Score(float(np.mean(predicted == LABELS)), NUM_SAMPLES, predicted, LABELS)
    return {"validation": validation, **score_section(made, tuple(test) if sets is None else sets)}


def make_record(label, rule, seed, *, accuracy=0.75, rate=0.001, source="tuned", validation=0.5, **changes):
    """A finished record of the tiny experiment with one test set."""
    digest = hashlib.sha256(repr((label, rule, seed, rate)).encode()).hexdigest()[:16]
    group = hashlib.sha256(repr((label, rule)).encode()).hexdigest()[:16]
    grid = [{"value": rate, "validation": 0.5}] * 7 if source == "tuned" else []
    record = {
        "schema": 2,
        "protocol": 2,
        "run_id": digest,
        "experiment": "tiny",
        "status": "finished",
        "error": None,
        "created": f"2026-01-01T00:00:0{seed % 10}+00:00",
        "identity": {"settings": digest, "group": group, "tuning": group, "data": f"rule {rule}", "weights": "w"},
        "config": make_config(label, rule, seed, rate),
        "data": {"name": rule, "sizes": {"test": NUM_SAMPLES}, "remarks": []},
        "provenance": {"commit": "a" * 40, "dirty": False, "hardware": {"cpu": "some CPU", "threads": 2, "gpu": None}},
        "parameters": {"trainable": 1000, "total": 5000, "per_layer": {}},
        "learning_rate": {"value": rate, "source": source, "tuned_for": [], "grid": grid},
        "curves": {"loss": [], "validation": []},
        "solution": None,
        "scores": scores_of({"test": accuracy}, validation),
        "time": {"train_seconds": 4.0 + seed, "total_seconds": 6.0},
        "memory": {"peak_bytes": 100_000_000 + seed, "counter": "VmHWM"},
        "saved": None,
    }
    return {**record, **changes}


def make_config(label, rule, seed, rate):
    return {
        "adapter": {"method": "lora", "label": label},
        "backbone": {"name": "tiny"},
        "rule": rule,
        "seed": seed,
        "training": {"steps": 4, "epochs": None, "batch_size": 8, "precision": "fp32", "learning_rate": rate},
    }


def finished_record(planned, validation=0.5, test=(("near", 0.75), ("far", 0.5)), **changes):
    """The record of a planned run of the tiny experiment as it could have come out."""
    return {
        **opening(planned),
        "status": "finished",
        "data": {"name": planned.config.rule, "sizes": {"test": NUM_SAMPLES}, "remarks": []},
        "parameters": {"trainable": 1000, "total": 5000, "per_layer": {}},
        "curves": {"loss": [], "validation": []},
        "solution": None,
        "scores": scores_of(dict(test), validation),
        "time": {"train_seconds": 4.0, "total_seconds": 6.0},
        "memory": {"peak_bytes": 100_000_000, "counter": "VmHWM"},
        "saved": None,
        **changes,
    }


def run(planned, on_progress):
    """Does what the file `do<seed>` in the results folder says, else finishes; notes in `calls` that it was asked."""
    folder = planned.ledger.directory.parent
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "calls", "a") as file:
        file.write(f"{planned.run_id} {os.getpid()}\n")
    on_progress({"step": 1, "steps": 4, "loss": 1.5, "speed": 20.0, "unit": "vectors", "phase": "train"})
    todo = folder / f"do{planned.config.seed}"
    action = todo.read_text() if todo.exists() else "finish"
    if action == "report":
        for step in range(1, 101):
            on_progress({"step": step, "steps": 100, "phase": "train"})
        time.sleep(1)
    else:
        ACTIONS[action]()
    record = finished_record(planned)
    planned.ledger.write(record)
    return record


def messages(child):
    """All messages of a child, the final one last."""
    while True:
        forkserver.wait([child])
        for message in child.read():
            yield message
            if message[0] != "progress":
                return


def call(function, arguments):
    """What a function gives in a child."""
    (*_, (kind, value)) = messages(forkserver.launch(function, arguments))
    assert kind == "result", value
    return value


def inspect_process(name, on_progress):
    """Whether a module was loaded before the call, the server's threads, and torch's view of the fork."""
    loaded = name in sys.modules
    tasks = Path(f"/proc/{os.getppid()}/task")
    threads = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    import torch

    product = torch.ones(64, 64) @ torch.ones(64, 64)
    return {"loaded": loaded, "threads": threads, "sum": product.sum().item(), "num_threads": torch.get_num_threads()}


def wait_for_ever(started, on_progress):
    """Tells its process id, then waits; on an interruption leaves a file, as a run leaves its state."""
    try:
        on_progress({"pid": os.getpid()})
        threading.Event().wait()
    except KeyboardInterrupt:
        Path(started).write_text("saved")
        raise


def _fail():
    raise RuntimeError("the loss is not\na number")


def _die():
    print("about to vanish", flush=True)
    os._exit(7)


def _refuse():
    raise SystemExit(3)


ACTIONS = {
    "finish": lambda: None,
    "fail": _fail,
    "die": _die,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: threading.Event().wait(),
    "refuse": _refuse,
}
