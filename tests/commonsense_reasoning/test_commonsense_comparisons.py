"""The comparisons on language models that ship: equal budgets, shared runs, and settings that their headers state."""

import dataclasses
import re
from pathlib import Path

import pytest

from commonsense_reasoning.experiment import EXPERIMENT
from commonsense_reasoning.generated.questions import GENERATED_TASKS
from commonsense_reasoning.tasks import TASKS
from randlora_core.experiment.commands.tune import find_searches
from randlora_core.experiment.rates import build_config, choose_rate
from randlora_core.experiment.sweeps.comparison_file import load_comparison
from randlora_core.models.counts import closest_rank, count_trainable

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "commonsense.md").read_text(encoding="utf-8")


def configs(name, scale):
    """The configurations of a comparison's runs on language models."""
    runs = load_comparison(name, scale=scale).runs(EXPERIMENT.name)
    return [build_config(EXPERIMENT, overrides) for _, overrides in runs]


def identities(name):
    """What the runs of a miniature are identified by, at one learning rate for all."""
    return {str(config.identity(0.1)) for config in configs(name, "mini")}


@pytest.mark.parametrize("name", ["mini/commonsense", "mini/figure1", "mini/dora"])
def test_pairs_of_randlora_and_lora_have_the_closest_budgets(name):
    shapes = EXPERIMENT.adapted_shapes(build_config(EXPERIMENT, ["backbone=smollm2_135m"]))
    comparison = load_comparison(name)
    pairs = [pair for pair in comparison.file.pairs_of(EXPERIMENT.name) if pair[0].startswith("RandLoRA-")]
    for method, rival in pairs:
        kind, _, rank = rival.partition("-")
        if kind in ("LoRA", "DoRA"):
            budget = count_trainable(shapes, "lora", int(rank))
            own_rank = int(method.removesuffix(" (blocks)").partition("-")[2])  # groups do not change the parameters
            assert own_rank == closest_rank(shapes, "randlora", budget)
            assert count_trainable(shapes, "randlora", own_rank) == pytest.approx(budget, rel=0.02)
    assert pairs


def test_the_miniatures_share_their_runs():
    whole = identities("commonsense")
    assert len(whole) == 1 + 11 * 3
    assert identities("figure1") < whole and len(identities("figure1")) == 6 * 3 + 1
    assert len(identities("dora") & whole) == 3 * 3 and len(identities("dora")) == 4 * 3


def test_the_miniature_takes_one_length_for_all_and_every_method_of_the_paper():
    fitted = [config for config in configs("commonsense", "mini") if config.is_fitted]
    lengths = {(c.training.steps, c.training.batch_size, c.examples, c.training.precision) for c in fitted}
    assert lengths == {(50, 24, 1200, "fp32")} and 50 * 24 == 1200  # every question once
    assert {(c.form, c.protocol, c.loss_on) for c in fitted} == {("cloze", "cloze", "answer")}
    assert {config.test_items for config in configs("commonsense", "mini")} == {200}
    methods = {config.adapter.method for config in configs("commonsense", "mini")}
    assert methods == {"zero_shot", "full", "lora", "dora", "vera", "nola", "randlora"}


def test_the_comparison_in_the_papers_form_differs_in_the_form_alone():
    cloze = {config.adapter.label: config for config in configs("commonsense", "mini") if config.seed == 1}
    for config in configs("prompt_form", "mini"):
        values, other = (one.identity(0.1) for one in (config, cloze[config.adapter.label]))
        changed = {name for name in values if values[name] != other[name]}
        assert changed == {"form", "protocol"} and (config.form, config.protocol) == ("paper", "options")


@pytest.mark.parametrize(("name", "searches"), [("commonsense", 11), ("dora", 4), ("prompt_form", 2)])
def test_rates_are_chosen_by_the_validation_loss_of_a_row_of_its_own(name, searches):
    here = {"identify_data": lambda config: "data", "identify_weights": lambda config: "weights"}
    experiment = dataclasses.replace(EXPERIMENT, **here)
    found = find_searches(load_comparison(name, scale="mini"), {EXPERIMENT.name: experiment})[EXPERIMENT.name]
    assert len(found) == searches and EXPERIMENT.criterion == "minus validation loss per token"
    assert all("evaluate.test=false" in search.overrides and "seed=101" in search.overrides for search in found)


@pytest.mark.parametrize(
    ("command", "name", "scale"),
    [
        ("commonsense scale=mini paths.data=FOLDER", "commonsense", "mini"),
        ("dora scale=mini paths.data=FOLDER", "dora", "mini"),
        ("prompt_form scale=mini paths.data=FOLDER", "prompt_form", "mini"),
        ("commonsense scale=paper paths.data=FOLDER", "commonsense", "paper"),
        ("dora scale=paper paths.data=FOLDER", "dora", "paper"),
    ],
)
def test_the_page_counts_the_runs(command, name, scale):
    runs = {str(config.identity(0.1)) for config in configs(name, scale)}
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `bash scripts/train.sh {command}` "))
    assert f" {len(runs)} runs" in row


def test_the_page_lists_the_generated_tasks():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    listed = {row[0].strip("`"): int(row[3]) for row in rows if len(row) == 4}
    assert listed == {name: task.test_size for name, task in GENERATED_TASKS.items()}


def test_the_page_says_how_every_task_is_put_as_a_cloze():
    table = PAGE[PAGE.index("| task | what they share | what is scored |") :].partition("\n\n")[0].splitlines()[2:]
    rows = {
        name: (shared, scored)
        for _, names, shared, scored, _ in (line.split("|") for line in table)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert rows.keys() == TASKS.keys()
    for name, (shared, scored) in rows.items():
        layout = TASKS[name].layout
        assert ("`Question: ... Answer:`" in shared) == (layout.cloze == "question")
        assert ("gap" in shared and "gap" in scored) == (layout.cloze == "gap")
        assert not layout.options or scored.strip() == ", ".join(layout.options)


def test_the_demonstration_is_what_is_taken_where_no_scale_is_said_and_needs_no_data():
    comparison = load_comparison("commonsense")
    assert comparison.describe() == "commonsense at scale demo: configs/comparison/demo/commonsense.yaml"
    found = configs("commonsense", None)
    assert [config.adapter.method for config in found] == ["zero_shot", "full", "lora", "randlora"]
    assert {(config.dataset, config.seed, config.paths.data) for config in found} == {("generated", 1, None)}
    assert {(config.training.steps, config.training.batch_size) for config in found} == {(40, 16)}
    assert comparison.file.pairs == ()  # with one seed nothing could be claimed


def test_the_demonstration_takes_the_rates_that_were_tuned_for_the_miniature():
    own = {config.adapter.label: config for config in configs("commonsense", "mini") if config.seed == 1}
    for row, overrides in load_comparison("commonsense").runs(EXPERIMENT.name):
        if row.tuned_on:
            taken = build_config(EXPERIMENT, [*overrides, *row.tuned_on])
            assert taken.identity(0.1) == own[taken.adapter.label].identity(0.1)
            assert choose_rate(EXPERIMENT, build_config(EXPERIMENT, overrides), overrides).grid
