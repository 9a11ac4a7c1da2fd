"""Variants of the tiny experiment for the tests of commands, whose runs are done in child processes."""

import math
from dataclasses import replace

from tiny_experiment import TinyTask, make_experiment

BEST = {2: 1e-3, 3: 0.02, 5: 1e6}
"""Rank -> the learning rate at which the made-up validation score has its maximum."""

COMPARISON = """
experiment: tiny
axes: {rule: [sum, difference]}
seeds: [1, 2]
overrides: [training.steps=2]
methods:
  - {overrides: [adapter=zero_shot]}
  - {overrides: [adapter=lora, adapter.rank=2], centre: 1.0e-3}
  - {overrides: [adapter=randlora, adapter.rank=2], centre: 2.0e-3}
pairs:
  - [RandLoRA-2, LoRA-2]
reference: Zero-shot
tuning: {seed: 101, num_values: 5, limit: 9}
"""


class FailsWithLora(TinyTask):
    def batches(self, count, size):
        if self.config.adapter.method == "lora":
            raise RuntimeError("the loss is not\na number")
        return super().batches(count, size)


class ScoredByRate(TinyTask):
    """Its validation score depends on the learning rate alone; looking at a test set is an error."""

    def validate(self, device, precision):
        best = BEST[self.config.adapter.options["rank"]]
        return math.exp(-abs(math.log(self.config.training.learning_rate / best)))

    def evaluate(self, split, device, precision):
        raise AssertionError(f"the {split} set was looked at")


def with_comparison(folder, text=COMPARISON, **changes):
    """The tiny experiment with a comparison called small."""
    experiment = replace(make_experiment(folder), **changes)
    (experiment.configs / "comparison" / "small.yaml").write_text(text)
    return experiment


def write_second_experiment(folder, name):
    """Writes a package with an experiment of another name, which is found by it, and returns the experiment."""
    (folder / name).mkdir()
    code = "from pathlib import Path\nfrom tiny_experiment import make_experiment\n"
    code += f"EXPERIMENT = make_experiment(Path(__file__).parent, {name!r})\n"
    (folder / name / "experiment.py").write_text(code)
    return make_experiment(folder / name, name)
