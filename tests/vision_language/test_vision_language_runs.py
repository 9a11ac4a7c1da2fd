import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from randlora_core.experiment.ledger import Ledger, read_records
from randlora_core.experiment.predictions import decode_predictions
from safetensors.torch import load_file
from vision_language.comparisons import identify
from vision_language.config import build_config, record_config

from randlora_core.models import build_backbone
from vision_language import train
from vision_language.train import plan, run

QUICK = [
    "backbone.pretrained=false",
    "training.steps=3",
    "training.batch_size=6",
    "training.precision=fp32",
    "threads=1",
]
TRAINED = ["training.learning_rate=1e-3", *QUICK]
ADAPTERS = ("lora", "rslora", "dora", "vera", "nola", "randlora", "randlora_sparse", "randdora")


CLASSES = ("ant", "bee", "cow")
SIZES = {"train": 15, "validation": 3, "test": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with one dataset of three classes of coloured noise."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(CLASSES):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 120, (20, 24, 3), np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def results(tmp_path, data):
    """Overrides that every run here shares: the made dataset, and a folder of its own for records."""
    return ["dataset=pets", f"paths.data={data}", f"paths.results={tmp_path}"]


def losses(record):
    return [loss for _, loss in record["curves"]["loss"]]


def test_a_record_holds_what_a_reader_needs(results, tmp_path):
    events = []
    record = run(["adapter=lora", "adapter.rank=4", "evaluate.every=2", *TRAINED, *results], on_progress=events.append)
    assert record == json.loads((tmp_path / "vision_language" / f"{record['run_id']}.json").read_text())
    assert record["status"] == "finished" and record["error"] is None
    assert record["config"]["adapter"]["label"] == "LoRA-4" and record["config"]["adapter"]["alpha"] is None
    assert record["config"]["training"]["learning_rate"] == 1e-3 and "paths" not in record["config"]
    assert record["learning_rate"] == {"value": 1e-3, "source": "config", "grid": []}
    assert record["data"]["sizes"] == SIZES and len(record["data"]["fingerprint"]) == 64
    assert len(losses(record)) == 3 and [step for step, _ in record["curves"]["validation"]] == [2, 3]
    assert record["curves"]["validation"][-1][1] == record["result"]["validation_accuracy"]
    predicted, labels = decode_predictions(record["predictions"])
    assert len(labels) == record["result"]["test_size"] == record["data"]["sizes"]["test"]
    assert np.mean(predicted == labels) == pytest.approx(record["result"]["test_accuracy"])
    assert sum(record["parameters"]["per_layer"].values()) == record["parameters"]["trainable"]
    assert record["memory"]["peak_bytes"] > 0 and record["time"]["images_per_second"] > 0
    assert [event["step"] for event in events if event["phase"] == "train"] == [1, 2, 3]
    assert [event["phase"] for event in events] == ["train"] * 3 + ["evaluate"]
    assert {"step", "steps", "loss", "images_per_second", "phase"} <= events[0].keys()
    assert read_records(tmp_path / "vision_language") == [record]


def test_a_finished_run_is_not_done_again(results, monkeypatch):
    first = run(["adapter=zero_shot", *QUICK, *results])
    monkeypatch.setattr(train, "execute", lambda *arguments: pytest.fail("done again"))
    assert run(["adapter=zero_shot", *QUICK, *results, "threads=2"]) == first


def test_seeds_reach_order_initialisation_bases_and_shots(results, tmp_path):
    def trained(folder, seed, adapter):
        return run(
            [
                f"adapter={adapter}",
                "adapter.rank=8",
                f"seed={seed}",
                "shots=3",
                *TRAINED,
                *results,
                f"paths.results={tmp_path / folder}",
            ]
        )

    for adapter in ("lora", "randlora"):
        one, same, other = trained("a", 1, adapter), trained("b", 1, adapter), trained("a", 2, adapter)
        assert losses(one) == losses(same) and one["predictions"] == same["predictions"]
        assert losses(one) != losses(other) and one["run_id"] != other["run_id"]


@pytest.mark.parametrize("adapter", ["full", "linear_probe", *ADAPTERS])
def test_every_method_trains_what_it_says(adapter, results, tmp_path):
    rank = [] if adapter in ("full", "linear_probe") else ["adapter.rank=16"]
    record = run([f"adapter={adapter}", *rank, *TRAINED, *results, "evaluate.test=false", "save.adapter=true"])
    assert record["result"]["test_accuracy"] is None and record["predictions"] is None
    assert all(np.isfinite(losses(record)))
    assert 0 < record["parameters"]["trainable"] <= record["parameters"]["total"]
    assert list((tmp_path / "vision_language" / record["saved"]).iterdir())


def test_zero_shot_is_the_untouched_model(results, data):
    from randlora_core.datasets.load import load_data
    from randlora_core.datasets.transforms import eval_transform

    record = run(["adapter=zero_shot", *QUICK, *results])
    backbone, pets = build_backbone("mini_clip", pretrained=False), load_data("pets", root=data)
    transform = eval_transform(backbone.image_size, backbone.mean, backbone.std, interpolation=backbone.interpolation)
    images = torch.stack([transform(pets.test.image(index)) for index in range(len(pets.test))])
    with torch.no_grad():
        image_features = torch.nn.functional.normalize(backbone.model.encode_image(images), dim=-1)
        texts = [
            torch.nn.functional.normalize(
                backbone.model.encode_text(backbone.tokenize([template.format(name) for name in pets.class_names])),
                dim=-1,
            )
            for template in pets.templates
        ]
    expected = (image_features @ sum(texts).T).argmax(dim=-1).numpy()
    predicted, labels = decode_predictions(record["predictions"])
    assert np.array_equal(predicted, expected) and np.array_equal(labels, pets.test.labels.numpy())
    assert record["parameters"]["trainable"] == 0 and record["curves"]["loss"] == []
    assert record["learning_rate"]["source"] == "none"


def test_tuning_runs_never_read_the_test_split(results, monkeypatch):
    from randlora_core.datasets.images import ImageSplit

    original = ImageSplit.image

    def guarded(split, index):
        assert split.name != "test"
        return original(split, index)

    monkeypatch.setattr(ImageSplit, "image", guarded)
    record = run(["adapter=linear_probe", *TRAINED, *results, "evaluate.test=false"])
    assert record["status"] == "finished" and record["result"]["test_size"] is None


def test_full_fine_tuning_is_kept_as_a_delta(results, tmp_path):
    record = run(["adapter=full", *TRAINED, *results, "evaluate.test=false", "save.adapter=true"])
    delta = load_file(tmp_path / "vision_language" / record["saved"] / "delta.safetensors")
    model = build_backbone("mini_clip", pretrained=False).model
    assert set(delta) == {name for name, _ in model.named_parameters()} - {"logit_scale"}
    assert any(float(tensor.abs().max()) > 1e-4 for tensor in delta.values())


def test_weights_asked_for_later_are_trained_again(results, tmp_path):
    overrides = ["adapter=linear_probe", *TRAINED, *results, "evaluate.test=false"]
    assert run(overrides)["saved"] is None
    assert plan(overrides).finished is not None and plan([*overrides, "save.adapter=true"]).finished is None
    saved = run([*overrides, "save.adapter=true"])["saved"]
    assert set(load_file(tmp_path / "vision_language" / saved / "head.safetensors")) == {"weight", "bias"}


def test_a_failed_run_leaves_a_record_and_is_taken_up_again(results, tmp_path, monkeypatch):
    overrides = ["adapter=linear_probe", *TRAINED, *results, "evaluate.test=false"]
    with monkeypatch.context() as broken:
        broken.setattr(train, "fit", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(overrides)
    (record,) = read_records(tmp_path / "vision_language")
    assert record["status"] == "failed" and record["error"]["type"] == "ZeroDivisionError"
    assert "test_train.py" in record["error"]["traceback"] and "result" not in record
    assert run(overrides)["status"] == "finished"
    assert [r["status"] for r in read_records(tmp_path / "vision_language")] == ["finished"]


def test_an_interrupted_run_leaves_no_record_and_resumes_to_the_bit(results, tmp_path):
    overrides = ["adapter=lora", "adapter.rank=4", "adapter.dropout=0.1", *TRAINED]
    whole = run([*overrides, *results, f"paths.results={tmp_path / 'other'}"])

    def interrupt(event):
        if event["step"] == 2 and event["phase"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run([*overrides, *results], on_progress=interrupt)
    folder = tmp_path / "vision_language"
    assert read_records(folder) == [] and (folder / whole["run_id"] / "state.safetensors").exists()
    steps = []
    resumed = run([*overrides, *results], on_progress=lambda event: steps.append(event["step"]))
    assert steps[0] == 3
    assert losses(resumed) == losses(whole) and resumed["predictions"] == whole["predictions"]
    assert not (folder / whole["run_id"]).exists()


def test_a_full_disk_leaves_no_half_written_record(results, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(["adapter=zero_shot", *QUICK, *results])
    assert list((tmp_path / "vision_language").iterdir()) == []


def test_the_tuned_learning_rate_is_used_and_told(results, monkeypatch):
    from vision_language.learning_rates import LearningRate

    from vision_language import learning_rates

    grid = ({"value": 0.02, "validation_accuracy": 0.5},)
    monkeypatch.setattr(learning_rates, "_tuned", lambda config: LearningRate(0.02, "tuned", grid))
    tuned = plan(["adapter=lora", *QUICK, *results])
    assert tuned.learning_rate.value == 0.02 and tuned.recorded["training"]["learning_rate"] == 0.02
    assert plan(["adapter=lora", *TRAINED, *results]).learning_rate.source == "config"
    assert plan(["adapter=lora", *QUICK, *results]).run_id != plan(["adapter=lora", *TRAINED, *results]).run_id
    monkeypatch.setattr(learning_rates, "_tuned", lambda config: None)
    assert plan(["adapter=vera", *QUICK, *results]).learning_rate == LearningRate(0.01, "preset")
    with pytest.raises(ValueError, match=r"training\.learning_rate"):
        plan(["adapter=vera", "adapter.learning_rate=null", *QUICK, *results])


def tuning_record(steps, rate, score):
    config = record_config(build_config(["adapter=lora", f"training.steps={steps}"]), rate)
    return {"status": "finished", "config": config, "result": {"validation_accuracy": score}}


def test_of_two_tunings_the_one_of_the_same_training_counts(results, monkeypatch):
    from vision_language import learning_rates

    records = [tuning_record(20, 1e-3, 0.8), tuning_record(20, 2e-3, 0.7)]
    monkeypatch.setattr(learning_rates, "_tuning_records", lambda: records)
    other = plan(["adapter=lora", "training.steps=50"]).learning_rate
    assert (other.value, other.source) == (1e-3, "tuned_otherwise")
    assert plan(["adapter=lora", "adapter.alpha=7"]).learning_rate.source == "tuned_otherwise"
    assert plan(["adapter=lora", "seed=5"]).learning_rate.source == "tuned"
    for precision in ("bf16", "fp32"):  # tuned in one of them, by whatever processor this is
        assert plan(["adapter=lora", f"training.precision={precision}"]).learning_rate.source == "tuned"
    records += [tuning_record(50, 1e-3, 0.7), tuning_record(50, 2e-3, 0.8)]
    for steps, rate in ((20, 1e-3), (50, 2e-3)):
        chosen = plan(["adapter=lora", f"training.steps={steps}"]).learning_rate
        assert (chosen.value, chosen.source, len(chosen.grid)) == (rate, "tuned", 2)


def test_several_tunings_of_one_method_do_not_mix(results, monkeypatch):
    from vision_language import learning_rates

    tried = [
        ("20", "fp32", {1e-3: 0.8, 2e-3: 0.7}),
        ("20", "bf16", {1e-3: 0.7, 2e-3: 0.8}),
        ("50", "fp32", {5e-3: 0.9}),
    ]
    records = []
    for day, (steps, precision, scores) in enumerate(tried, start=1):
        for rate, score in scores.items():
            overrides = ["adapter=lora", f"training.steps={steps}", f"training.precision={precision}"]
            config = record_config(build_config(overrides), rate)
            record = {"config": config, "status": "finished", "created": f"2026-01-0{day}"}
            records.append({**record, "result": {"validation_accuracy": score}})
    monkeypatch.setattr(learning_rates, "_tuning_records", lambda: records)

    def chosen(steps, precision):
        rate = plan(["adapter=lora", f"training.steps={steps}", f"training.precision={precision}"]).learning_rate
        return rate.value, rate.source

    assert chosen(20, "fp32") == (1e-3, "tuned") and chosen(20, "bf16") == (2e-3, "tuned")
    assert chosen(50, "bf16") == (5e-3, "tuned")
    assert chosen(33, "fp32") == (5e-3, "tuned_otherwise")  # the newest in this format
    assert chosen(33, "bf16") == (2e-3, "tuned_otherwise")


def test_the_evaluation_is_told_before_it_begins(results, monkeypatch):
    events = []

    def stop(*arguments, **options):
        raise InterruptedError([event["phase"] for event in events])

    monkeypatch.setattr(train, "predict", stop)
    with pytest.raises(InterruptedError, match="evaluate"):
        run(["adapter=zero_shot", *QUICK, *results], on_progress=events.append)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there_is_told_before_anything_starts(results, tmp_path):
    with pytest.raises(ValueError, match="device='cuda'"):
        plan(["adapter=lora", *TRAINED, *results, "device=cuda"])


def test_a_comparison_takes_up_runs_that_lack_the_weights_it_asks_for(results):
    overrides = ["adapter=linear_probe", *TRAINED, *results, "evaluate.test=false"]
    run(overrides)
    assert identify(overrides)["complete"] and not identify([*overrides, "save.adapter=true"])["complete"]


def test_class_wise_and_accumulation_are_part_of_the_identity(results):
    plain = plan(["adapter=lora", *TRAINED, *results])
    for override in (
        "training.objective=class_wise",
        "training.accumulate=2",
        "training.crop=0.5",
        "evaluate.test=false",
    ):
        assert plan(["adapter=lora", *TRAINED, *results, override]).run_id != plain.run_id
    record = run(["adapter=lora", *TRAINED, *results, "training.objective=class_wise", "training.accumulate=2"])
    assert np.isfinite(losses(record)).all()


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
        (["+backbone.colour=red"], ["colour"]),
    ],
)
def test_bad_input_is_one_line_on_stderr(overrides, named, results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *TRAINED, *results, *overrides])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    output = capsys.readouterr()
    assert stopped.value.code == 1
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    for part in named:
        assert part in output.err


def test_an_unreadable_image_is_named(data, tmp_path, results, monkeypatch, capsys):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "pets" / "test" / "bee" / "1.png").write_bytes(b"no image")
    overrides = ["adapter=linear_probe", *TRAINED, *results, f"paths.data={tmp_path / 'data'}"]
    monkeypatch.setattr(sys, "argv", ["train", *overrides])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.count("\n") == 1 and "1.png" in error
    assert Ledger(tmp_path / "vision_language").read(plan(overrides).run_id)["status"] == "failed"


@pytest.mark.slow
def test_the_command_line_from_another_directory(tmp_path, results):
    command = [sys.executable, "-m", "vision_language.train", "adapter=linear_probe", *TRAINED, *results]
    first, again = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0 and "Linear probe: accuracy test" in first.stdout and first.stderr == ""
    assert again.returncode == 0 and "finished before" in again.stdout
    bad = subprocess.run([*command, "adapter=nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1 and "Traceback" not in bad.stderr
    helped = subprocess.run([*command[:3], "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert "adapter=" in helped.stdout and "randlora" in helped.stdout and "comparison" not in helped.stdout
