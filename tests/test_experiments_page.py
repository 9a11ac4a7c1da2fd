"""The experiment on docs/experiments.md is a whole one: it runs as it stands there."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from randlora_core.experiment.commands.compare import plan_comparison
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.interface import find_experiment
from randlora_core.experiment.running import run
from randlora_core.experiment.sweeps.comparison_file import load_comparison

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments.md"
ENTRY = "defaults: [run, _self_, {adapter: lora}, {backbone: none}, {tracking: none}]\nwidth: 8\n"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def signs(tmp_path):
    """The page's experiment with a configuration tree of its own."""
    (code,) = blocks("python")
    names = {"__name__": "signs"}
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
    shutil.copytree(CONFIGS / "adapter", tmp_path / "adapter")
    shutil.copytree(CONFIGS / "tracking", tmp_path / "tracking")
    shutil.copy(CONFIGS / "run.yaml", tmp_path)
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "none.yaml").write_text("name: none\n")
    (tmp_path / "signs.yaml").write_text(ENTRY)
    return replace(names["EXPERIMENT"], configs=tmp_path, records=tmp_path / "records")


def test_the_pages_experiment_learns(signs, tmp_path):
    overrides = [
        f"paths.results={tmp_path}",
        "training.precision=fp32",
        "training.learning_rate=0.02",
        "adapter.rank=2",
    ]
    before = run(signs, [*overrides, "adapter=zero_shot", "~adapter.rank"])["scores"]["mean"]
    after = run(signs, [*overrides, "training.steps=100"])
    assert after["scores"]["mean"] > max(0.85, before)
    assert after["config"]["width"] == 8 and after["scores"]["test"]["random"]["size"] == 200


def test_the_pages_comparison_file_can_be_planned(tmp_path):
    (text,) = blocks("yaml")
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "comparison" / "page.yaml").write_text(text)
    experiment = replace(find_experiment("vision_language"), configs=configs)
    comparison = load_comparison("page", configs=configs)
    planned = plan_comparison(comparison, {experiment.name: experiment}, None, inputs_needed=False)
    assert {entry.label for entry in planned} == {"Linear probe", "LoRA-16", "RandLoRA-2"}
    steps = {entry.config.shots: entry.config.training.steps for entry in planned}
    assert steps == {4: 100, None: 400}
