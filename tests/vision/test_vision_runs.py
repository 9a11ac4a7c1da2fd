"""Runs of vision on tiny models with random weights: what they train, record, keep and refuse."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from kept_runs import untrained_scores
from safetensors.torch import load_file
from tiny_vision import FORMULAS, OPTIONS, SHAPES, WIDTH, build

from randlora_core.experiment.commands.evaluate import evaluate_run
from randlora_core.experiment.commands.train import main
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.records.predictions import decode_predictions
from randlora_core.experiment.running import run
from vision.classifier import TrainedHead
from vision.experiment import EXPERIMENT

DINOV2, CLIP = OPTIONS
METHODS = ("full", "linear_probe", "lora", "rslora", "dora", "vera", "nola", "randlora", "randlora_sparse", "randdora")


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    """Trains once for all tests that look at its record: (record, folder of results)."""
    folder, records = tmp_path_factory.mktemp("trained"), {}

    def record(model, method):
        if (model, method) not in records:
            more = ["save.adapter=true", f"paths.results={folder}"]
            if method == "nola":  # at which three steps change a prediction
                more.append("training.learning_rate=0.1")
            records[model, method] = run(EXPERIMENT, [*given(model, method), *more])
        return records[model, method], folder

    return record


@pytest.fixture(scope="module")
def other_classes(pets, tmp_path_factory):
    """A folder with the data set without its class cow, and with another class in its place."""
    root = tmp_path_factory.mktemp("two")
    for name in ("two_pets", "other_pets"):
        shutil.copytree(pets / "pets", root / name)
    for split in ("train", "test"):
        shutil.rmtree(root / "two_pets" / split / "cow")
        (root / "other_pets" / split / "cow").rename(root / "other_pets" / split / "dog")
    return root


def losses(record):
    return [loss for _, loss in record["curves"]["loss"]]


def image_model(model):
    """The image model alone, without a head and without a text tower."""
    whole = build(model).model
    return whole.visual if model == CLIP else whole


@pytest.mark.parametrize("model", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_it_says(method, model, trained):
    record, folder = trained(model, method)
    head, features = (3 * WIDTH, WIDTH) if model == DINOV2 else (0, 512)
    found = record["parameters"]["trainable"]
    total = sum(value.numel() for value in image_model(model).parameters())
    if method == "full":
        assert found == record["parameters"]["total"] == total + head
    elif method == "linear_probe":
        assert found == 3 * features + 3 and record["parameters"]["total"] == total + found
    else:
        adapters = sum(FORMULAS[method.removesuffix("_sparse")](*shape) for shape in SHAPES)
        assert found == adapters + head and record["parameters"]["total"] == total + found
    assert all(np.isfinite(losses(record))) and len(losses(record)) == (0 if method == "linear_probe" else 3)
    kept = {path.name for path in (folder / "vision" / record["saved"]).iterdir()}
    assert ("head.safetensors" in kept) == (model == DINOV2 or method == "linear_probe")


@pytest.mark.parametrize("model", OPTIONS)
@pytest.mark.parametrize("method", ["full", "linear_probe", "lora", "randlora", "nola"])
def test_what_a_run_kept_predicts_what_the_run_predicted(method, model, trained, given, pets):
    record, folder = trained(model, method)
    found = evaluate_run(EXPERIMENT, record["run_id"], [f"paths.results={folder}", f"paths.data={pets}"])
    assert found["test"] == record["scores"]["test"] and found["mean"] == record["scores"]["mean"]
    assert found["test"] != untrained_scores(EXPERIMENT, given(model, method))


def test_the_kept_head_is_the_one_that_was_trained(trained):
    record, folder = trained(DINOV2, "lora")
    (head,) = load_file(folder / "vision" / record["saved"] / "head.safetensors").values()
    moved = (head - TrainedHead(WIDTH, 3, seed=0).weight.detach()).abs()
    assert head.shape == (3, WIDTH) and 1e-3 < float(moved.max()) < 3e-3  # three steps of at most 1e-3


def test_a_run_trains_its_head_at_the_heads_rate(given, tmp_path):
    """The rate decides from the second loss on, and at the run's own rate it is that of no rate at all."""
    rates = ("1e-3", "null", "0.1")
    plain, own, other = (
        run(EXPERIMENT, [*given(DINOV2, "lora"), f"training.head_learning_rate={rate}", f"paths.results={tmp_path}"])
        for rate in rates
    )
    assert losses(plain) == losses(own) and plain["run_id"] != own["run_id"]
    assert losses(plain)[0] == losses(other)[0] and losses(plain)[1] != losses(other)[1]


@pytest.mark.parametrize("method", ["lora", "full", "linear_probe"])
def test_a_head_of_other_classes_is_refused(method, trained, other_classes):
    record, folder = trained(DINOV2, method)
    overrides = [f"paths.results={folder}", f"paths.data={other_classes}"]
    with pytest.raises(ValueError, match=r"has a head for .*cow.*; the data have"):
        evaluate_run(EXPERIMENT, record["run_id"], [*overrides, "dataset=two_pets"])
    with pytest.raises(ValueError, match=r"has a head for .*cow.*; the data have .*dog"):
        evaluate_run(EXPERIMENT, record["run_id"], [*overrides, "dataset=other_pets"])


def test_an_adapter_of_clip_is_scored_on_other_classes_by_their_texts(trained, other_classes):
    record, folder = trained(CLIP, "lora")
    overrides = [f"paths.results={folder}", f"paths.data={other_classes}", "dataset=two_pets"]
    score = evaluate_run(EXPERIMENT, record["run_id"], overrides)["test"]["two_pets"]
    predicted, labels = decode_predictions(score["predictions"])
    assert len(labels) == 6 and set(predicted) <= {0, 1}


def test_a_record_names_its_images_and_the_heads_rate(trained):
    record, _ = trained(DINOV2, "lora")
    assert record["experiment"] == "vision" and record["data"]["sizes"] == {"train": 15, "validation": 3, "test": 9}
    assert record["config"]["training"]["head_learning_rate"] == 1e-3
    assert record["scores"]["test"]["pets"]["size"] == 9 and len(record["identity"]["data"]) == 64


@pytest.mark.parametrize("model", OPTIONS)
def test_a_model_learns_to_tell_the_colours_apart(model, given, tmp_path):
    """Chance is a third; each class has a colour of its own."""
    longer = ["training.steps=40", "training.learning_rate=3e-3", "training.batch_size=15"]
    record = run(EXPERIMENT, [*given(model, "lora"), *longer, f"paths.results={tmp_path}"])
    assert losses(record)[-1] < 0.6 * losses(record)[0] and record["scores"]["mean"] > 0.8


def test_seeds_reach_order_initialisation_bases_head_and_shots(given, tmp_path):
    def record(folder, seed, adapter):
        own = [f"seed={seed}", "shots=3", "training.steps=2", f"paths.results={tmp_path / folder}"]
        return run(EXPERIMENT, [*given(DINOV2, adapter), *own])

    for adapter in ("lora", "randlora"):
        one, same, other = record("a", 1, adapter), record("b", 1, adapter), record("a", 2, adapter)
        assert losses(one) == losses(same) and one["scores"] == same["scores"]
        assert losses(one) != losses(other) and one["run_id"] != other["run_id"]


@pytest.mark.parametrize("model", OPTIONS)
def test_an_interrupted_run_leaves_no_record_and_resumes_to_the_bit(model, given, tmp_path):
    own = [*given(model, "lora"), "adapter.dropout=0.1", "training.steps=5", "training.head_learning_rate=0.05"]
    whole = run(EXPERIMENT, [*own, f"paths.results={tmp_path / 'other'}"])

    def interrupt(event):
        if event["step"] == 3 and event["phase"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(EXPERIMENT, [*own, f"paths.results={tmp_path}"], on_progress=interrupt)
    assert read_records(tmp_path / "vision") == []
    assert (tmp_path / "vision" / whole["run_id"] / "state.safetensors").exists()
    steps = []
    more = [f"paths.results={tmp_path}", "save.adapter=true"]
    resumed = run(EXPERIMENT, [*own, *more], on_progress=lambda event: steps.append(event["step"]))
    assert steps[0] == 4
    assert losses(resumed) == losses(whole) and resumed["scores"] == whole["scores"]


def test_tuning_runs_never_read_the_test_split(given, tmp_path, monkeypatch):
    from randlora_core.datasets.images import ImageSplit

    original = ImageSplit.image

    def guarded(split, index):
        assert split.name != "test"
        return original(split, index)

    monkeypatch.setattr(ImageSplit, "image", guarded)
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path))
    for method in ("linear_probe", "lora"):
        record = run(EXPERIMENT, [*given(DINOV2, method), "evaluate.test=false", f"paths.results={tmp_path}"])
        assert record["status"] == "finished" and record["scores"]["test"] == {}
    with pytest.raises(AssertionError):
        run(EXPERIMENT, [*given(DINOV2, "linear_probe"), f"paths.results={tmp_path}"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["adapter=zero_shot"], ["zero_shot", "'dinov2_vit_s14'", "a model of CLIP"]),
        (["dataset=nothing"], ["'nothing'", "digits", "characters", "pets"]),
        (["adapter=randlora", "adapter.rank=500"], ["rank 500", str(WIDTH)]),
        (["adapter=lora", "adapter.targets=[attn.in_proj]"], ["attn.in_proj"]),
        (["backbone.image_size=30"], ["image_size", "multiple of 14"]),
        (["backbone.name=resnet"], ["'resnet'", "mini_clip"]),
    ],
)
def test_bad_input_is_one_line_on_stderr(overrides, named, given, tmp_path, capsys):
    assert main(EXPERIMENT, [*given(DINOV2, "full"), f"paths.results={tmp_path}", *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in named:
        assert part in error


@pytest.mark.slow
def test_the_four_commands_from_another_directory(tmp_path, given):
    overrides = [*given(DINOV2, "lora"), f"paths.results={tmp_path}", "save.adapter=true"]
    command = [sys.executable, "-m", "vision.train", *overrides]
    first, again = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0 and "LoRA-8: pets " in first.stdout and first.stderr == ""
    assert again.returncode == 0 and "finished before" in again.stdout
    (record,) = read_records(tmp_path / "vision")
    data = next(text for text in overrides if text.startswith("paths.data="))
    scored = [sys.executable, "-m", "vision.evaluate", f"run={record['run_id']}", f"paths.results={tmp_path}", data]
    done = subprocess.run(scored, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith(f"pets: {100 * record['scores']['mean']:.2f} % of 9")
    for name in ("compare", "tune"):  # the default comparison is another experiment's
        done = subprocess.run([sys.executable, "-m", f"vision.{name}"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and f"accepted: python -m vision_language.{name}" in done.stderr
