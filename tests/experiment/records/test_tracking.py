import sys
import types

import pytest

from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.records.tracking import make_tracker

RECORD = {
    "status": "finished",
    "scores": {"validation": 0.25, "mean": 0.5, "test": {"near": {"value": 0.4}, "far": {"value": 0.6}}},
    "time": {"train_seconds": 1.0},
    "parameters": {"trainable": 9},
    "memory": {"peak_bytes": 7, "counter": "VmHWM"},
    "config": {
        "adapter": {"method": "lora", "label": "LoRA-4", "rank": 4},
        "backbone": {"name": "tiny"},
        "seed": 2,
        "training": {"learning_rate": 0.001},
    },
}


class FakeRun:
    def __init__(self, broken):
        self.broken, self.logged, self.summary, self.exit_code = broken, [], {}, None

    def log(self, values, step):
        if self.broken:
            raise ConnectionError("no network")
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    module = types.ModuleType("wandb")
    module.run, module.arguments, module.fail = FakeRun(False), None, False

    def init(**arguments):
        if module.fail:
            raise RuntimeError("api key")
        module.arguments = arguments
        return module.run

    module.init, module.Settings = init, lambda **values: values
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def tracker(tiny):
    def make(*overrides, folder="folder"):
        return make_tracker(plan_run(tiny, ["adapter.rank=4", "seed=2", *overrides]), str(folder))

    return make


def test_none_sends_nothing_and_does_not_import_wandb(wandb, tracker):
    silent = tracker()
    silent.log(1, {"loss": 1.0})
    silent.finish(RECORD)
    assert wandb.arguments is None


def test_wandb_gets_curves_summary_group_and_tags(wandb, tracker, tiny):
    tracking = tracker("tracking=wandb", "tracking.project=p", "tracking.mode=offline")
    tracking.log(1, {"loss": 1.0})
    tracking.finish(RECORD)
    planned = plan_run(tiny, ["adapter.rank=4", "seed=2"])
    given = wandb.arguments
    assert (given["project"], given["mode"], given["id"], given["dir"]) == ("p", "offline", planned.run_id, "folder")
    assert given["group"] == f"LoRA-4-sum-{planned.identity.group[:8]}" and given["name"] == f"{given['group']}-seed2"
    assert given["tags"] == ["lora", "tiny", "sum"] and given["config"] == planned.recorded
    assert wandb.run.logged == [(1, {"loss": 1.0})]
    assert wandb.run.summary == {
        "method": "lora",
        "label": "LoRA-4",
        "rank": 4,
        "seed": 2,
        "rule": "sum",
        "learning_rate": 0.001,
        "trainable": 9,
        "validation": 0.25,
        "test": 0.5,
        "test/near": 0.4,
        "test/far": 0.6,
        "train_seconds": 1.0,
        "peak_bytes": 7,
    }
    assert wandb.run.exit_code == 0


def test_a_quantised_base_is_told_apart_by_the_label(wandb, tracker):
    config = RECORD["config"] | {"backbone": {"name": "tiny", "quantize": "4bit"}}
    tracker("tracking=wandb").finish(RECORD | {"config": config})
    assert wandb.run.summary["label"] == "LoRA-4 4bit"


def test_seeds_of_one_configuration_share_a_group(wandb, tracker):
    groups = []
    for overrides in (["seed=1"], ["seed=2"], ["seed=1", "training.steps=7"]):
        tracker("tracking=wandb", *overrides)
        groups.append(wandb.arguments["group"])
    assert groups[0] == groups[1] != groups[2]


def test_the_environment_may_take_wandb_offline(wandb, tracker, monkeypatch):
    tracker("tracking=wandb")
    assert wandb.arguments["mode"] == "online" and wandb.arguments["resume"] == "allow"
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker("tracking=wandb")
    assert wandb.arguments["mode"] == "offline" and wandb.arguments["resume"] is None


def test_a_failed_record_marks_the_run(wandb, tracker):
    tracker("tracking=wandb").finish({"status": "failed", "config": RECORD["config"]})
    assert wandb.run.exit_code == 1
    assert wandb.run.summary["label"] == "LoRA-4" and wandb.run.summary["test"] is None


def test_errors_of_wandb_are_warnings(wandb, tracker, capsys):
    wandb.fail = True
    tracker("tracking=wandb").finish(RECORD)
    assert "RuntimeError: api key" in capsys.readouterr().err
    wandb.fail, wandb.run = False, FakeRun(True)
    broken = tracker("tracking=wandb")
    for step in range(3):
        broken.log(step, {"loss": 1.0})
    assert capsys.readouterr().err.count("no network") == 1


@pytest.mark.slow
def test_wandb_offline_writes_its_files(tiny, tmp_path):
    planned = plan_run(tiny, ["tracking=wandb", "tracking.mode=offline", "adapter.rank=4"])
    tracking = make_tracker(planned, str(tmp_path))
    tracking.log(1, {"loss": 1.0})
    tracking.finish(RECORD)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
