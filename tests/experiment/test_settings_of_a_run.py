"""What a run's settings, its seed and its task make of the training loop."""

import dataclasses

import pytest
import torch
from test_running import LORA, losses
from tiny_experiment import TinyTask

from randlora_core.experiment import running
from randlora_core.experiment.running import run


def test_seeds_reach_order_initialisation_and_bases(tiny, tmp_path):
    def trained(folder, seed, adapter):
        given = [f"adapter={adapter}", "adapter.rank=2", f"seed={seed}", "training.learning_rate=0.05"]
        return run(tiny, [*given, f"paths.results={tmp_path / folder}"])

    for adapter in ("lora", "randlora"):
        one, same, other = trained("a", 1, adapter), trained("b", 1, adapter), trained("a", 2, adapter)
        assert losses(one) == losses(same) and one["scores"] == same["scores"]
        assert losses(one) != losses(other) and one["run_id"] != other["run_id"]


class RandomHead(TinyTask):
    """Draws a layer of its own from torch's global generator, as a task without a seed of its own does."""

    def __init__(self, config):
        super().__init__(config)
        self.drawn = torch.randn(3)
        self.data = {**self.data, "drawn": self.drawn.tolist()}


def test_what_a_task_draws_is_decided_by_the_runs_seed(tiny, tmp_path):
    def drawn(folder, seed):
        torch.manual_seed(len(folder))
        given = [*LORA, f"seed={seed}", "training.steps=1", f"paths.results={tmp_path / folder}"]
        return run(dataclasses.replace(tiny, build_task=RandomHead), given)["data"]["drawn"]

    assert drawn("one", 1) == drawn("three", 1) != drawn("one", 2)


def test_epochs_are_counted_in_the_tasks_examples(tiny, results):
    record = run(tiny, [*LORA, "training.steps=null", "training.epochs=2", "training.batch_size=24", results])
    assert len(losses(record)) == 6  # 64 examples make 3 batches of 24


def test_micro_batches_make_up_the_batch(tiny, results):
    """Four micro-batches of 4 examples are asked for where a step of 16 is accumulated."""
    asked = []

    class Watching(TinyTask):
        def batches(self, count, size):
            asked.append((count, size))
            return super().batches(count, size)

    run(dataclasses.replace(tiny, build_task=Watching), [*LORA, "training.accumulate=4", results])
    assert asked == [(16, 4)]


def test_every_setting_reaches_the_training_loop(tiny, results, monkeypatch):
    seen = []

    def capture(module, batches, settings, device, **more):
        seen.append((settings, more["resume"]))
        raise InterruptedError

    monkeypatch.setattr(running, "fit", capture)
    chosen = {
        "training.steps": 6,
        "training.accumulate": 2,
        "training.learning_rate": 0.5,
        "training.weight_decay": 0.25,
        "training.clip": 3.5,
        "training.schedule": "linear",
        "training.warmup_steps": 2,
        "training.keep_best": "true",
        "training.precision": "bf16",
        "evaluate.every": 3,
        "seed": 9,
        "workers": 1,
        "save.state_seconds": 7,
    }
    for more in ([], ["training.schedule=cosine", "training.clip=null"]):
        with pytest.raises(InterruptedError):
            run(tiny, ["adapter.rank=2", *(f"{key}={value}" for key, value in chosen.items()), results, *more])
    (linear, resume), (cosine, _) = seen
    assert dataclasses.asdict(linear) == {
        "steps": 6,
        "accumulate": 2,
        "learning_rate": 0.5,
        "weight_decay": 0.25,
        "clip": 3.5,
        "precision": "bf16",
        "schedule": "linear",
        "warmup_steps": 2,
        "floor": 0.0,
        "seed": 9,
        "validate_every": 3,
        "keep_best": True,
        "workers": 1,
        "part_learning_rates": {},
    }
    assert (cosine.schedule, cosine.floor, cosine.clip) == ("cosine", 0.01, None)
    assert resume.seconds == 7 and resume.key in str(resume.path)


def test_a_tasks_own_learning_rates_reach_the_training_loop(tiny, results, monkeypatch):
    class WithRates(TinyTask):
        part_learning_rates = {"model.0": 0.25}  # noqa: RUF012

    def capture(module, batches, settings, device, **more):
        raise InterruptedError(settings.part_learning_rates)

    monkeypatch.setattr(running, "fit", capture)
    with pytest.raises(InterruptedError, match=r"^\{'model\.0': 0\.25\}$"):
        run(dataclasses.replace(tiny, build_task=WithRates), [*LORA, results])


@pytest.mark.filterwarnings("ignore:groups='max' becomes 1, since layer '3' has n = 1 bases")
@pytest.mark.parametrize(
    ("overrides", "groups"),
    [
        (["adapter=randlora_blocks", "adapter.targets=['0']"], 2),
        (["adapter=randlora_blocks"], 1),
        (["adapter=randlora"], 1),
        (["adapter=lora"], None),
    ],
)
def test_the_record_says_into_how_many_groups_the_bases_were_divided(tiny, results, overrides, groups):
    """With groups=max the model decides: its second layer has two outputs, and one basis of rank 2."""
    record = run(tiny, [*overrides, "adapter.rank=2", "training.steps=1", "training.learning_rate=0.05", results])
    assert record["parameters"].get("groups") == groups


def test_threads_are_as_many_as_asked_for(tiny, results):
    before = torch.get_num_threads()
    try:
        record = run(tiny, [*LORA, "threads=2", results])
        assert torch.get_num_threads() == record["provenance"]["hardware"]["threads"] == 2
    finally:
        torch.set_num_threads(before)
