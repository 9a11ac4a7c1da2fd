import errno
import os
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from kept_runs import untrained_scores
from safetensors.torch import load_file

from randlora_core.datasets.load import load_data
from randlora_core.datasets.transforms import eval_transform
from randlora_core.experiment.commands.evaluate import evaluate_run
from randlora_core.experiment.commands.train import main
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.records.ledger import read_records
from randlora_core.experiment.records.predictions import decode_predictions
from randlora_core.experiment.running import run
from randlora_core.models import build_backbone
from vision_language.experiment import EXPERIMENT

QUICK = [
    "backbone.pretrained=false",
    "training.steps=3",
    "training.batch_size=6",
    "training.precision=fp32",
    "training.learning_rate=1e-3",
    "threads=1",
]
RANK = 16
METHODS = ("full", "linear_probe", "lora", "rslora", "dora", "vera", "nola", "randlora", "randlora_sparse", "randdora")


@pytest.fixture(scope="module")
def dataset(pets):
    return [*QUICK, "dataset=pets", f"paths.data={pets}"]


@pytest.fixture
def given(dataset, tmp_path):
    """Overrides that every run here shares: the made data set, and a folder of its own for records."""
    return [*dataset, f"paths.results={tmp_path}"]


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Trains a method once for all tests that look at its record: (record, folder of results)."""
    folder, records = tmp_path_factory.mktemp("trained"), {}

    def record(method):
        if method not in records:
            rank = [] if method in ("full", "linear_probe", "zero_shot") else [f"adapter.rank={RANK}"]
            overrides = [f"adapter={method}", *rank, *dataset, "save.adapter=true", f"paths.results={folder}"]
            records[method] = run(EXPERIMENT, overrides)
        return records[method], folder

    return record


@pytest.fixture(scope="module")
def shapes():
    """(out, in) of every layer that adapters go on by default, and the parameters of the whole model."""
    model = build_backbone("mini_clip", pretrained=False).model
    ends = ("attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    layers = [tuple(value.shape) for name, value in model.named_parameters() if name.endswith(ends)]
    return layers, sum(value.numel() for value in model.parameters())


def losses(record):
    return [loss for _, loss in record["curves"]["loss"]]


def predictions(record):
    return decode_predictions(record["scores"]["test"]["pets"]["predictions"])[0]


FORMULAS = {
    "lora": lambda rows, columns: RANK * (rows + columns),
    "rslora": lambda rows, columns: RANK * (rows + columns),
    "dora": lambda rows, columns: RANK * (rows + columns) + rows,
    "vera": lambda rows, columns: RANK + rows,
    "nola": lambda rows, columns: 1024 + 1024,
    "randlora": lambda rows, columns: -(-min(rows, columns) // RANK) * (RANK + min(rows, columns)),
    "randdora": lambda rows, columns: -(-min(rows, columns) // RANK) * (RANK + min(rows, columns)) + rows,
}
"""Trainable parameters of a layer by the papers' formulas, apart from the library's own counts."""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_it_says(method, trained, shapes):
    record, folder = trained(method)
    layers, total = shapes
    found = record["parameters"]["trainable"]
    if method == "full":
        assert found == total - 1  # the temperature stays as it is
    elif method == "linear_probe":
        assert found == 3 * 192 + 3  # classes x features, and a bias for each class
    else:
        assert found == sum(FORMULAS[method.removesuffix("_sparse")](*shape) for shape in layers)
        assert record["parameters"]["total"] == total + found
    assert all(np.isfinite(losses(record))) and len(losses(record)) == (0 if method == "linear_probe" else 3)
    assert list((folder / "vision_language" / record["saved"]).iterdir())


@pytest.mark.parametrize("method", ["full", "linear_probe", "lora", "randlora", "nola"])
def test_what_a_run_kept_predicts_what_the_run_predicted(method, trained, dataset, pets):
    record, folder = trained(method)
    found = evaluate_run(EXPERIMENT, record["run_id"], [f"paths.results={folder}", f"paths.data={pets}"])
    assert found["test"] == record["scores"]["test"] and found["mean"] == record["scores"]["mean"]
    assert found["test"] != untrained_scores(EXPERIMENT, [f"adapter={method}", *dataset])


def test_a_probe_of_other_classes_is_refused(trained, tmp_path, pets):
    record, folder = trained("linear_probe")
    shutil.copytree(pets / "pets", tmp_path / "two_pets")
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "two_pets" / split / "cow")
    overrides = [f"paths.results={folder}", f"paths.data={tmp_path}", "dataset=two_pets"]
    with pytest.raises(ValueError, match=r"has a head for .*cow.*; the data have"):
        evaluate_run(EXPERIMENT, record["run_id"], overrides)


def test_full_fine_tuning_is_kept_as_a_delta(trained):
    record, folder = trained("full")
    delta = load_file(folder / "vision_language" / record["saved"] / "delta.safetensors")
    model = build_backbone("mini_clip", pretrained=False).model
    assert set(delta) == {name for name, _ in model.named_parameters()} - {"logit_scale"}
    assert any(float(tensor.abs().max()) > 1e-4 for tensor in delta.values())


def test_a_probe_keeps_its_head_and_says_how_it_was_chosen(trained):
    record, folder = trained("linear_probe")
    head = load_file(folder / "vision_language" / record["saved"] / "head.safetensors")
    assert set(head) == {f"head.{name}" for name in ("mean", "scale", "linear.weight", "linear.bias")}
    solution = record["solution"]
    assert solution["converged"] is True
    best = max(entry["validation"] for entry in solution["grid"])
    chosen = [entry["strength"] for entry in solution["grid"] if entry["validation"] == best]
    assert solution["strength"] == chosen[0] and record["scores"]["validation"] == best
    assert record["learning_rate"]["source"] == "none" and record["scores"]["mean"] == 1.0  # the colours are easy


def test_zero_shot_is_the_untouched_model(trained, pets):
    record, _ = trained("zero_shot")
    backbone, data = build_backbone("mini_clip", pretrained=False), load_data("pets", root=pets)
    transform = eval_transform(backbone.image_size, backbone.mean, backbone.std, interpolation=backbone.interpolation)
    images = torch.stack([transform(data.test.image(index)) for index in range(len(data.test))])
    with torch.no_grad():
        image_features = torch.nn.functional.normalize(backbone.model.encode_image(images), dim=-1)
        texts = [
            torch.nn.functional.normalize(
                backbone.model.encode_text(backbone.tokenize([template.format(name) for name in data.class_names])),
                dim=-1,
            )
            for template in data.templates
        ]
    expected = (image_features @ sum(texts).T).argmax(dim=-1).numpy()
    predicted, labels = decode_predictions(record["scores"]["test"]["pets"]["predictions"])
    assert np.array_equal(predicted, expected) and np.array_equal(labels, data.test.labels.numpy())
    assert record["parameters"]["trainable"] == 0 and record["curves"]["loss"] == []
    assert record["learning_rate"]["source"] == "none"


def test_a_record_names_its_images(trained):
    record, _ = trained("lora")
    assert record["data"]["sizes"] == {"train": 15, "validation": 3, "test": 9}
    assert record["data"]["remarks"][0].startswith("pets is a subset")
    assert len(record["identity"]["data"]) == 64 and list(record["scores"]["test"]) == ["pets"]
    assert record["scores"]["test"]["pets"]["size"] == 9
    assert record["config"]["training"]["objective"] == "in_batch"


def test_seeds_reach_order_initialisation_bases_and_shots(dataset, tmp_path):
    def record(folder, seed, adapter):
        own = [f"adapter={adapter}", "adapter.rank=8", f"seed={seed}", "shots=3", "training.steps=2"]
        return run(EXPERIMENT, [*dataset, *own, f"paths.results={tmp_path / folder}"])

    for adapter in ("lora", "randlora"):
        one, same, other = record("a", 1, adapter), record("b", 1, adapter), record("a", 2, adapter)
        assert losses(one) == losses(same) and one["scores"] == same["scores"]
        assert losses(one) != losses(other) and one["run_id"] != other["run_id"]


def test_class_wise_accumulation_crops_and_flips_change_the_run(given):
    plain = plan_run(EXPERIMENT, ["adapter=lora", *given])
    for override in (
        "training.objective=class_wise",
        "training.accumulate=2",
        "training.crop=0.5",
        "training.flip=true",
    ):
        assert plan_run(EXPERIMENT, ["adapter=lora", *given, override]).run_id != plain.run_id
    changed = ["training.objective=class_wise", "training.accumulate=2", "training.crop=0.5", "adapter.rank=4"]
    record = run(EXPERIMENT, ["adapter=lora", *given, *changed])
    assert np.isfinite(losses(record)).all() and len(losses(record)) == 3


def test_processes_that_prepare_images_change_nothing(dataset, tmp_path):
    overrides = [*dataset, "adapter=lora", "adapter.rank=4", "training.crop=0.5", "training.steps=2"]
    one, two = (run(EXPERIMENT, [*overrides, f"workers={n}", f"paths.results={tmp_path / str(n)}"]) for n in (0, 1))
    assert losses(one) == losses(two) and one["scores"] == two["scores"] and one["run_id"] == two["run_id"]


def test_tuning_runs_never_read_the_test_split(given, monkeypatch):
    from randlora_core.datasets.images import ImageSplit

    original = ImageSplit.image

    def guarded(split, index):
        assert split.name != "test"
        return original(split, index)

    monkeypatch.setattr(ImageSplit, "image", guarded)
    monkeypatch.setenv("RANDLORA_CACHE", str(given[-1].removeprefix("paths.results=")))
    for method in ("linear_probe", "lora"):
        record = run(EXPERIMENT, [f"adapter={method}", *given, "evaluate.test=false"])
        assert record["status"] == "finished" and record["scores"]["test"] == {}
    with pytest.raises(AssertionError):
        run(EXPERIMENT, ["adapter=linear_probe", *given])


def test_an_interrupted_run_leaves_no_record_and_resumes_to_the_bit(given, dataset, tmp_path):
    own = ["adapter=lora", "adapter.rank=4", "adapter.dropout=0.1"]
    whole = run(EXPERIMENT, [*own, *dataset, f"paths.results={tmp_path / 'other'}"])

    def interrupt(event):
        if event["step"] == 2 and event["phase"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(EXPERIMENT, [*own, *given], on_progress=interrupt)
    folder = tmp_path / "vision_language"
    assert read_records(folder) == [] and (folder / whole["run_id"] / "state.safetensors").exists()
    steps = []
    resumed = run(EXPERIMENT, [*own, *given], on_progress=lambda event: steps.append(event["step"]))
    assert steps[0] == 3
    assert losses(resumed) == losses(whole) and resumed["scores"] == whole["scores"]
    assert not (folder / whole["run_id"]).exists()


def test_a_full_disk_leaves_no_half_written_record(given, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(EXPERIMENT, ["adapter=zero_shot", *given])
    assert list((tmp_path / "vision_language").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["dataset=nothing"], ["'nothing'", "digits", "characters", "pets"]),
        (["dataset=caltech101", "paths.data=/no/such/folder"], ["/no/such/folder"]),
        (["dataset=digits", "paths.data=/no/such/folder"], ["/no/such/folder"]),
        (["shots=5000"], ["shots=5000", "1 to"]),
        (["shots=0"], ["shots=0"]),
        (["adapter=randlora", "adapter.rank=500"], ["rank 500", "192"]),
        (["adapter=lora", "adapter.targets=[nothing]"], ["nothing"]),
        (["backbone.name=resnet"], ["'resnet'", "mini_clip"]),
        (["backbone=dinov2_vit_s14", "backbone.pretrained=false"], ["no text tower", "CLIP"]),
        (["+backbone.colour=red"], ["colour"]),
    ],
)
def test_bad_input_is_one_line_on_stderr(overrides, named, given, capsys):
    assert main(EXPERIMENT, [*given, *overrides]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    for part in named:
        assert part in output.err


def test_an_unreadable_image_is_named(pets, tmp_path, given, capsys):
    shutil.copytree(pets, tmp_path / "data")
    (tmp_path / "data" / "pets" / "test" / "bee" / "1.png").write_bytes(b"no image")
    overrides = ["adapter=linear_probe", *given, f"paths.data={tmp_path / 'data'}"]
    assert main(EXPERIMENT, overrides) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "1.png" in error


def test_the_line_at_the_end_names_the_data_set(given, capsys):
    assert main(EXPERIMENT, ["adapter=linear_probe", *given]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "learning rate: nothing to choose"
    assert shown[-2].startswith("Linear probe: pets 100.00 %, validation 100.0 %; 579 trainable parameters; ")


@pytest.mark.slow
def test_the_command_line_from_another_directory(tmp_path, given, capsys):
    overrides = ["adapter=linear_probe", *given]
    command = [sys.executable, "-m", "vision_language.train", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Linear probe: pets " in done.stdout and done.stderr == ""
    assert main(EXPERIMENT, overrides) == 0
    assert "has finished before" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "compare", "tune", "evaluate"])
def test_every_command_is_a_module_of_the_experiment(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--wrong"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"vision_language.{name}", run_name="__main__")
    assert stopped.value.code == 2 and "unrecognized arguments: --wrong" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"vision_language.{name}", run_name="__main__")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and f"usage: python -m vision_language.{name} " in shown
    if name == "train":
        assert (
            "adapter=dora|full|linear_probe|lora|" in shown and "dataset: digits" in shown and "weight_decay" in shown
        )
        assert "comparison=" not in shown
