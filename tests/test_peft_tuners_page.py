"""docs/peft_tuners.md names the types that are accepted, and its counts are those that are counted."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from randlora_core.experiment.interface import find_experiment
from randlora_core.experiment.peft_tuners import check_tuner, inject_tuner, tuner_parameters
from randlora_core.experiment.rates import build_config
from randlora_core.models.counts import count_trainable

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "peft_tuners.md").read_text(encoding="utf-8")


def test_the_types_are_those_that_are_accepted():
    version, listed = re.search(r"With PEFT ([\d.]+) a test trains.*?: (.*?)\. FROD", PAGE, re.DOTALL).groups()
    if importlib.metadata.version("peft") != version:
        pytest.skip(f"the page is about PEFT {version}")
    with pytest.raises(ValueError) as caught:
        check_tuner({"peft_type": "none"})
    assert listed.replace("\n", " ").split(", ") == str(caught.value).split("accepted: ")[1].split(", ")
    for name in re.findall(r"\(([A-Z_]+), ([A-Z_]+)", PAGE.replace("\n", " ")):
        for refused in name:
            with pytest.raises(ValueError, match=f"{refused}' (has to be called|is for)"):
                check_tuner({"peft_type": refused})


@pytest.mark.parametrize(("column", "name"), [(1, "vision_language"), (2, "vision")])
def test_the_counts_are_counted(column, name):
    experiment = find_experiment(name)
    shapes = experiment.adapted_shapes(build_config(experiment, ["backbone=mini_clip"]))
    model = nn.Sequential(*(nn.Linear(columns, rows, device="meta") for rows, columns in shapes.values()))
    inject_tuner(model, check_tuner({"peft_type": "C3A", "kwargs": {"block_size": 8}}), "all-linear")
    counts = {
        "LoRA-16, HIRA `{r: 16}`": count_trainable(shapes, "lora", 16),
        "C3A `{block_size: 8}`": sum(tuner_parameters(model).values()),
        "RandLoRA-2": count_trainable(shapes, "randlora", 2),
        "RandLoRA-3": count_trainable(shapes, "randlora", 3),
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]
    assert {row[0]: row[column] for row in rows if row[0] in counts} == {
        label: f"{count:,}" for label, count in counts.items()
    }


def test_c3a_begins_at_the_pretrained_model_where_it_is_told_to():
    x = torch.randn(3, 8)

    def started(kwargs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16))
        before = model(x)
        inject_tuner(model, check_tuner({"peft_type": "C3A", "kwargs": {"block_size": 4, **kwargs}}), ("0",))
        return torch.equal(model(x), before)

    assert started({"init_weights": True}) and not started({})
