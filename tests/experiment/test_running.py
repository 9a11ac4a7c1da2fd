import dataclasses
import errno
import json
import os
import signal

import numpy as np
import pytest
import torch
from tiny_experiment import TinyTask

from randlora_core.experiment import running
from randlora_core.experiment.loop.fit import FitResult
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.records.predictions import decode_predictions
from randlora_core.experiment.running import execute, run

LORA = ["adapter=lora", "adapter.rank=2", "training.learning_rate=0.05"]


def losses(record):
    return [loss for _, loss in record["curves"]["loss"]]


def test_a_record_holds_what_a_reader_needs(tiny, results, tmp_path):
    events = []
    record = run(tiny, [*LORA, "evaluate.every=3", results], on_progress=events.append)
    assert record == json.loads((tmp_path / "results" / "tiny" / f"{record['run_id']}.json").read_text())
    assert (record["schema"], record["status"], record["error"], record["saved"]) == (2, "finished", None, None)
    assert record["config"]["adapter"]["label"] == "LoRA-2" and record["config"]["adapter"]["alpha"] is None
    assert record["config"]["training"]["learning_rate"] == 0.05 and "paths" not in record["config"]
    assert record["learning_rate"] == {"value": 0.05, "source": "config", "tuned_for": [], "grid": []}
    planned = plan_run(tiny, [*LORA, "evaluate.every=3", results])
    assert record["identity"] == planned.identity.recorded() and record["experiment"] == "tiny"
    assert record["data"]["name"] == "sum" and record["data"]["remarks"] == ["sum is made up."]
    assert len(losses(record)) == 4 and [step for step, _ in record["curves"]["validation"]] == [3, 4]
    assert record["curves"]["validation"][-1][1] == record["scores"]["validation"]
    assert list(record["scores"]["test"]) == ["near", "far"]
    for score in record["scores"]["test"].values():
        predicted, labels = decode_predictions(score["predictions"])
        assert len(labels) == score["size"] == 40 and np.mean(predicted == labels) == pytest.approx(score["value"])
    values = [score["value"] for score in record["scores"]["test"].values()]
    assert record["scores"]["mean"] == sum(values) / 2 and values[0] != values[1]
    assert sum(record["parameters"]["per_layer"].values()) == record["parameters"]["trainable"]
    assert record["memory"]["peak_bytes"] > 0 and record["time"]["examples_per_second"] > 0
    assert record["time"]["data_examples_per_second"] > 0 and record["earlier_errors"] == []
    assert [event["step"] for event in events if event["phase"] == "train"] == [1, 2, 3, 4]
    assert [event["phase"] for event in events] == ["train"] * 4 + ["evaluate"]
    assert {"step", "steps", "loss", "speed", "unit", "phase"} <= events[0].keys()
    assert events[0]["steps"] == 4 and events[0]["unit"] == "vectors"
    assert read_records(tmp_path / "results" / "tiny") == [record]


def test_a_finished_run_is_not_done_again(tiny, results, monkeypatch):
    first = run(tiny, ["adapter=zero_shot", results])
    monkeypatch.setattr(running, "execute", lambda *arguments: pytest.fail("done again"))
    assert run(tiny, ["adapter=zero_shot", results, "threads=2"]) == first


class OneSetOnly(TinyTask):
    """Scores one of its two test sets."""

    def evaluate(self, split, device, precision):
        return dict(list(super().evaluate(split, device, precision).items())[:1])


def test_there_is_no_mean_where_a_test_set_is_missing(tiny, results):
    record = run(dataclasses.replace(tiny, build_task=OneSetOnly), [*LORA, results])
    assert list(record["scores"]["test"]) == ["near"] and record["scores"]["mean"] is None
    assert record["scores"]["validation"] is not None


class NoTest(TinyTask):
    """Has test sets that must not be looked at."""

    def evaluate(self, split, device, precision):
        assert split == "validation"
        return super().evaluate(split, device, precision)


def test_runs_that_choose_hyper_parameters_never_look_at_the_test_sets(tiny, results):
    experiment = dataclasses.replace(tiny, build_task=NoTest)
    record = run(experiment, [*LORA, "evaluate.test=false", results])
    assert record["scores"]["test"] == {} and record["scores"]["mean"] is None
    assert 0 <= record["scores"]["validation"] <= 1
    with pytest.raises(AssertionError):
        run(experiment, [*LORA, results])


def test_the_evaluation_is_told_before_it_begins(tiny, results):
    events = []

    def watch(config):
        task = TinyTask(config)
        task.evaluate = lambda *arguments: pytest.fail("evaluated") if not events else stop()
        return task

    def stop():
        raise InterruptedError([event["phase"] for event in events])

    with pytest.raises(InterruptedError, match="evaluate"):
        run(dataclasses.replace(tiny, build_task=watch), ["adapter=zero_shot", results], on_progress=events.append)


def test_zero_shot_is_the_untouched_model(tiny, results):
    record = run(tiny, ["adapter=zero_shot", results])
    task = TinyTask(plan_run(tiny, ["adapter=zero_shot"]).config)
    task.module.eval()
    expected = task.evaluate("test", torch.device("cpu"), "fp32")
    for name, score in expected.items():
        assert np.array_equal(decode_predictions(record["scores"]["test"][name]["predictions"])[0], score.predicted)
    assert record["parameters"]["trainable"] == 0 and record["curves"]["loss"] == []
    assert record["learning_rate"]["source"] == "none" and record["time"]["examples_per_second"] is None


class Broken(TinyTask):
    """Fails when it is asked for training batches."""

    def batches(self, count, size):
        return 1 / 0


def test_a_failed_run_leaves_a_record_and_is_taken_up_again(tiny, results, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(dataclasses.replace(tiny, build_task=Broken), [*LORA, results])
    (record,) = read_records(tmp_path / "results" / "tiny")
    assert record["status"] == "failed" and record["error"]["type"] == "ZeroDivisionError"
    assert "test_running.py" in record["error"]["traceback"] and "scores" not in record
    assert record["config"]["adapter"]["label"] == "LoRA-2" and record["provenance"]["python"]
    assert run(tiny, [*LORA, results])["status"] == "finished"
    assert [r["status"] for r in read_records(tmp_path / "results" / "tiny")] == ["finished"]


def test_a_loss_that_is_not_finite_is_a_failed_run(tiny, results, tmp_path):
    with pytest.raises(FloatingPointError, match="with learning rate 1e\\+30"):
        run(tiny, ["adapter=full", "training.learning_rate=1e30", "training.steps=20", "training.clip=null", results])
    (record,) = read_records(tmp_path / "results" / "tiny")
    assert record["status"] == "failed" and record["error"]["type"] == "FloatingPointError"


class OutOfMemory(TinyTask):
    """Asks for more memory than there is."""

    def batches(self, count, size):
        return torch.empty(2**60, dtype=torch.uint8)


def test_running_out_of_memory_is_a_failed_run_that_says_what_to_change(tiny, results, tmp_path):
    with pytest.raises(MemoryError, match=r"training\.accumulate=4 \(now 2\)"):
        run(dataclasses.replace(tiny, build_task=OutOfMemory), [*LORA, "training.accumulate=2", results])
    (record,) = read_records(tmp_path / "results" / "tiny")
    assert record["status"] == "failed" and record["error"]["type"] == "MemoryError"
    assert "can't allocate memory" in record["error"]["message"] and "test_running.py" in record["error"]["traceback"]


def test_every_attempt_that_failed_is_in_the_record_also_when_the_run_finishes(tiny, results, tmp_path):
    for task, kind in ((Broken, ZeroDivisionError), (OutOfMemory, MemoryError)):
        with pytest.raises(kind):
            run(dataclasses.replace(tiny, build_task=task), [*LORA, results])
    (failed,) = read_records(tmp_path / "results" / "tiny")
    assert [error["type"] for error in failed["earlier_errors"]] == ["ZeroDivisionError"]
    finished = run(tiny, [*LORA, results])
    first, second = finished["earlier_errors"]
    assert first == failed["earlier_errors"][0] and "test_running.py" in first["traceback"]
    assert second == {**failed["error"], "created": failed["created"]} and finished["error"] is None
    assert run(tiny, [*LORA, "save.adapter=true", results])["earlier_errors"] == [first, second]
    assert run(tiny, [*LORA, "seed=5", results])["earlier_errors"] == []


def test_the_rate_at_which_data_could_come_is_that_of_all_workers(tiny, results, monkeypatch):
    """A made-up training that says that a micro-batch of 4 took half a second to prepare."""
    monkeypatch.setattr(running, "fit", lambda *arguments, **more: FitResult(prepare_seconds=0.5))
    settings = ["adapter.rank=2", "training.accumulate=4", "training.learning_rate=0.1", results]
    for workers, expected in ((0, 8.0), (3, 24.0)):
        record = run(tiny, [f"workers={workers}", f"seed={workers}", *settings])
        assert record["time"]["data_examples_per_second"] == expected
    monkeypatch.setattr(running, "fit", lambda *arguments, **more: FitResult())
    assert run(tiny, ["seed=9", *settings])["time"]["data_examples_per_second"] is None


@pytest.mark.parametrize("keep_best", [False, True])
def test_an_interrupted_run_leaves_no_record_and_resumes_to_the_bit(tiny, results, tmp_path, keep_best):
    overrides = [*LORA, "adapter.dropout=0.1", "training.steps=6", "evaluate.every=1"]
    overrides += [f"training.keep_best={str(keep_best).lower()}"]
    whole = run(tiny, [*overrides, f"paths.results={tmp_path / 'other'}"])

    def interrupt(event):
        if event["step"] == 3 and event["phase"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(tiny, [*overrides, results], on_progress=interrupt)
    folder = tmp_path / "results" / "tiny"
    assert read_records(folder) == [] and (folder / whole["run_id"] / "state.safetensors").exists()
    steps = []
    resumed = run(tiny, [*overrides, results], on_progress=lambda event: steps.append(event["step"]))
    assert steps[0] == 4
    assert resumed["curves"] == whole["curves"] and resumed["scores"] == whole["scores"]
    assert not (folder / whole["run_id"]).exists()


def test_the_best_state_is_the_one_that_is_tested(tiny, results):
    """The validation scores are made up: the second of four is the best."""
    made_up, validated, tested = iter([0.1, 0.9, 0.3, 0.2]), [], []

    class Watched(TinyTask):
        def copy(self):
            return {name: value.clone() for name, value in self.model.state_dict().items()}

        def validate(self, device, precision):
            validated.append(self.copy())
            return next(made_up)

        def evaluate(self, split, device, precision):
            tested.append(self.copy())
            return super().evaluate(split, device, precision)

    overrides = [*LORA, "evaluate.every=1", "training.keep_best=true", results]
    record = run(dataclasses.replace(tiny, build_task=Watched), overrides)
    assert record["scores"]["validation"] == 0.9 and len(validated) == 4
    (final,) = tested
    assert all(torch.equal(value, validated[1][name]) for name, value in final.items())
    assert any(not torch.equal(value, validated[3][name]) for name, value in final.items())


def test_a_full_disk_leaves_no_half_written_record(tiny, results, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(tiny, ["adapter=zero_shot", results])
    assert list((tmp_path / "results" / "tiny").iterdir()) == []


def test_weights_asked_for_later_are_trained_again(tiny, results, tmp_path):
    assert run(tiny, [*LORA, results])["saved"] is None
    assert plan_run(tiny, [*LORA, results]).finished is not None
    assert plan_run(tiny, [*LORA, results, "save.adapter=true"]).finished is None
    record = run(tiny, [*LORA, results, "save.adapter=true"])
    assert record["saved"] == f"{record['run_id']}/weights"
    assert list((tmp_path / "results" / "tiny" / record["saved"]).iterdir())
    assert plan_run(tiny, [*LORA, results, "save.adapter=true"]).finished == record
    assert run(tiny, ["adapter=zero_shot", results, "save.adapter=true"])["saved"] is None  # there is nothing to keep


def test_scores_are_kept_where_the_weights_cannot_be_written(tiny, results, tmp_path, monkeypatch):
    def full(*arguments, **facts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(running, "save_weights", full)
    overrides = [*LORA, results, "save.adapter=true"]
    with pytest.raises(OSError, match="No space left"):
        run(tiny, overrides)
    (record,) = read_records(tmp_path / "results" / "tiny")
    assert record["status"] == "finished" and record["scores"]["mean"] is not None and record["saved"] is None
    assert plan_run(tiny, overrides).finished is None and plan_run(tiny, [*LORA, results]).finished == record
    monkeypatch.undo()
    assert run(tiny, overrides)["saved"] == f"{record['run_id']}/weights"


class Interrupted(TinyTask):
    """Is killed while it is evaluated."""

    def evaluate(self, split, device, precision):
        raise KeyboardInterrupt


def test_an_evaluation_that_is_killed_does_not_cost_the_training(tiny, results):
    overrides = [*LORA, results, "save.state_seconds=0"]
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(tiny, build_task=Interrupted), overrides)
    phases = []
    record = run(tiny, overrides, on_progress=lambda event: phases.append(event["phase"]))
    assert phases == ["evaluate"] and len(losses(record)) == 4


def test_a_run_says_what_it_is_before_it_trains(tiny, results, capsys):
    events = []

    def watch(event):
        events.append(capsys.readouterr().out)

    record = run(tiny, [*LORA, results], on_progress=watch)
    assert events[0] == f"run {record['run_id']}: sum LoRA-2 seed 0\nlearning rate: 0.05 (given)\n"


def test_the_tracker_gets_curves_and_the_record(tiny, results, monkeypatch):
    class Tracker:
        def __init__(self):
            self.logged, self.records = [], []

        def log(self, step, values):
            self.logged.append((step, values["loss"]))

        def finish(self, record):
            self.records.append(record)

    tracker = Tracker()
    monkeypatch.setattr(running, "make_tracker", lambda planned, directory: tracker)
    record = run(tiny, [*LORA, results])
    assert [loss for _, loss in tracker.logged] == losses(record) and tracker.records == [record]
    with pytest.raises(ZeroDivisionError):
        execute(plan_run(dataclasses.replace(tiny, build_task=Broken), [*LORA, results]))
    assert [found["status"] for found in tracker.records] == ["finished", "failed"]
