"""A whole experiment that is not about images: signs of sums of random numbers, two test sets, a tiny network."""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import Axis, Experiment, MissingInputError, Score, Task
from randlora_core.experiment.loop.seeding import generator

WIDTH = 12
RULES = ("sum", "difference")


class TinyConfig(RunConfig):
    """One run; `rule` says what the network learns."""

    rule: str


def draw(rule, seed, count):
    """Vectors (count, WIDTH) and whether the rule's value of each is positive."""
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    value = vectors.sum(1) if rule == "sum" else vectors[:, ::2].sum(1) - vectors[:, 1::2].sum(1)
    return vectors, (value > 0).long()


class SummedLoss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, vectors, labels):
        return F.cross_entropy(self.model(vectors), labels, reduction="sum"), len(labels)


class TinyBatches(Dataset):
    def __init__(self, rule, count, size, seed):
        self.rule, self.count, self.size, self.seed = rule, count, size, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        state = generator(self.seed, "data_order", index)
        return draw(self.rule, int(torch.randint(2**31, (), generator=state)), self.size)


class TinyTask(Task):
    def __init__(self, config):
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 2))
        self.module = SummedLoss(self.model)
        self.default_targets, self.num_examples = ("0", "3"), 64
        self.data = {"name": config.rule, "sizes": {"train": 64}, "remarks": [f"{config.rule} is made up."]}
        self.test_sets = ("near", "far")

    def batches(self, count, size):
        return TinyBatches(self.config.rule, count, size, self.config.seed)

    @torch.no_grad()
    def evaluate(self, split, device, precision):
        scores = {}
        for number, name in enumerate(("near", "far") if split == "test" else ("validation",)):
            vectors, labels = draw(self.config.rule, 1000 + number + 10 * (split == "test"), 40)
            predicted = self.model((vectors * (3 if name == "far" else 1)).to(device)).argmax(1).cpu()
            scores[name] = Score(
                float((predicted == labels).double().mean()), 40, np.array(predicted), np.array(labels)
            )
        return scores


def identify_data(config):
    if config.rule == "product":
        raise MissingInputError("the rule product is not here")
    if config.rule not in RULES:
        raise ValueError(f"unknown rule {config.rule!r}; accepted: {', '.join(RULES)}")
    return f"rule {config.rule}"


def identify_weights(config):
    return "drawn from seed 0"


ENTRY = """
defaults: [run, _self_, {adapter: lora}, {backbone: tiny}, {tracking: none}]
rule: sum
training: {steps: 4, batch_size: 16, precision: fp32}
"""


def make_experiment(folder: Path, name: str = "tiny") -> Experiment:
    """The experiment with a configuration tree and committed records of its own in `folder`."""
    configs = folder / "configs"
    if not configs.exists():
        write_configs(configs, name)
    return Experiment(
        name=name,
        config_class=TinyConfig,
        axes=(Axis("rule"),),
        identify_data=identify_data,
        identify_weights=identify_weights,
        build_task=TinyTask,
        unit="vectors",
        configs=configs,
        records=folder / "records",
    )


def write_configs(configs: Path, name: str) -> None:
    """Writes a configuration tree with an entry of this name."""
    for group in ("adapter", "tracking"):
        shutil.copytree(CONFIGS / group, configs / group)
    shutil.copy(CONFIGS / "run.yaml", configs)
    for file, text in ((f"{name}.yaml", ENTRY), ("backbone/tiny.yaml", "name: tiny\n"), ("comparison/none.yaml", "")):
        (configs / file).parent.mkdir(exist_ok=True)
        (configs / file).write_text(text)
