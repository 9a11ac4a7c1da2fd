import sys
import types

import pytest
from randlora_core.experiment.tracking import make_tracker

from randlora_core.experiment.config import TrackingConfig
from randlora_core.experiment.identity import group_name

CONFIG = {
    "adapter": {"method": "lora", "label": "LoRA-4", "rank": 4},
    "backbone": {"name": "mini_clip"},
    "dataset": {"name": "digits"},
    "seed": 2,
}
RECORD = {
    "status": "finished",
    "result": {"test_accuracy": 0.5},
    "time": {"train_seconds": 1.0},
    "parameters": {"trainable": 9},
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


def test_none_sends_nothing_and_does_not_import_wandb(wandb):
    tracker = make_tracker(TrackingConfig(), "id", CONFIG, "folder")
    tracker.log(1, {"loss": 1.0})
    tracker.finish(RECORD)
    assert wandb.arguments is None


def test_wandb_gets_curves_summary_group_and_tags(wandb):
    tracker = make_tracker(TrackingConfig("wandb", "project", "offline"), "id", CONFIG, "folder")
    tracker.log(1, {"loss": 1.0})
    tracker.finish(RECORD)
    assert wandb.arguments["group"] == group_name(CONFIG) and wandb.arguments["mode"] == "offline"
    assert wandb.arguments["tags"] == ["lora", "digits", "mini_clip"]
    assert wandb.run.logged == [(1, {"loss": 1.0})]
    assert wandb.run.summary == {"trainable": 9, "test_accuracy": 0.5, "train_seconds": 1.0}
    assert wandb.run.exit_code == 0


def test_the_environment_may_take_wandb_offline(wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_tracker(TrackingConfig("wandb"), "id", CONFIG, "folder")
    assert wandb.arguments["mode"] == "offline" and wandb.arguments["resume"] is None


def test_a_failed_record_marks_the_run(wandb):
    tracker = make_tracker(TrackingConfig("wandb"), "id", CONFIG, "folder")
    tracker.finish({"status": "failed"})
    assert wandb.run.exit_code == 1


def test_errors_of_wandb_are_warnings(wandb, capsys):
    wandb.fail = True
    make_tracker(TrackingConfig("wandb"), "id", CONFIG, "folder").finish(RECORD)
    assert "RuntimeError: api key" in capsys.readouterr().err
    wandb.fail, wandb.run = False, FakeRun(True)
    tracker = make_tracker(TrackingConfig("wandb"), "id", CONFIG, "folder")
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    assert capsys.readouterr().err.count("no network") == 1


@pytest.mark.slow
def test_wandb_offline_writes_its_files(tmp_path):
    tracker = make_tracker(TrackingConfig("wandb", "project", "offline"), "abcdef", CONFIG, str(tmp_path))
    tracker.log(1, {"loss": 1.0})
    tracker.finish(RECORD)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
