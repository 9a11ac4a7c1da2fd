"""The comparison files that ship: they compose, they are fair, and their pairs have the closest budgets."""

import dataclasses

import pytest

from randlora_core.adapters.inject import find_targets
from randlora_core.experiment.commands.tune import find_searches
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.sweeps.comparison_file import load_comparison
from randlora_core.experiment.sweeps.comparison_names import comparison_names
from randlora_core.models import build_backbone
from randlora_core.models.counts import closest_rank, count_trainable
from vision_language.experiment import EXPERIMENT

NAMES = comparison_names()


def test_the_default_comparison_is_there():
    assert "default" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_every_comparison_is_a_configuration(name):
    comparison = load_comparison(name)
    for known, experiment in comparison.experiments().items():
        for row, overrides in comparison.runs(known):
            config = build_config(experiment, overrides)
            assert config.seed in comparison.seeds
            if row.tuned_on:
                build_config(experiment, [*overrides, *row.tuned_on])


@pytest.mark.parametrize("name", NAMES)
def test_rows_have_labels_of_their_own_and_pairs_and_reference_name_rows(name):
    comparison = load_comparison(name)
    rows = {}
    for known, experiment in comparison.experiments().items():
        for row, overrides in comparison.runs(known):
            rows.setdefault((known, build_config(experiment, overrides).adapter.label), set()).add(row.overrides)
    assert all(len(own) == 1 for own in rows.values())
    assert {text for own in rows.values() for text in own} == {row.overrides for row in comparison.file.methods}
    labels = {label for _, label in rows}
    for known in comparison.experiments():
        for pair in comparison.file.pairs_of(known):
            assert set(pair) <= {label for experiment, label in rows if experiment == known}
    assert comparison.file.reference in (None, *labels)


@pytest.mark.parametrize("name", NAMES)
def test_tuning_touches_neither_the_test_split_nor_the_comparisons_seeds(name):
    comparison = load_comparison(name)
    here = {"identify_data": lambda config: "data", "identify_weights": lambda config: "weights"}
    known = {name: dataclasses.replace(one, **here) for name, one in comparison.experiments().items()}
    for searches in find_searches(comparison, known).values():
        assert all("evaluate.test=false" in search.overrides for search in searches)
        assert all(f"seed={comparison.file.tuning.seed}" in search.overrides for search in searches)


def test_the_default_comparison_is_fair():
    comparison = load_comparison("default")
    assert len(set(comparison.seeds)) >= 3 and comparison.file.tuning.num_values >= 3
    configs = [(row, build_config(EXPERIMENT, overrides)) for row, overrides in comparison.runs("vision_language")]
    fitted = [config for _, config in configs if config.is_fitted]
    assert (
        len({(config.training.steps, config.training.batch_size, config.training.precision) for config in fitted}) == 1
    )
    assert fitted[0].training.steps >= 20
    assert all((row.centre is not None) == config.is_fitted for row, config in configs)
    methods = {config.adapter.method for _, config in configs}
    assert {"zero_shot", "linear_probe", "full", "lora", "randlora"} <= methods


@pytest.mark.parametrize("name", ["default", "mini/figure3", "mini/figure1"])
def test_the_pairs_of_randlora_and_lora_have_the_closest_budgets(name):
    """The ranks in the file are the ones whose parameters on the small CLIP come closest to LoRA's."""
    backbone = build_backbone("mini_clip", pretrained=False)
    shapes = find_targets(backbone.model, backbone.default_targets)
    pairs = [pair for pair in load_comparison(name).file.pairs_of("vision_language") if pair[1].startswith("LoRA-")]
    assert pairs
    for method, rival in pairs:
        budget = count_trainable(shapes, "lora", int(rival.removeprefix("LoRA-")))
        rank = int(method.removesuffix(" (blocks)").removeprefix("RandLoRA-"))  # groups do not change the parameters
        assert rank == closest_rank(shapes, "randlora", budget)
        assert 0.8 < count_trainable(shapes, "randlora", rank) / budget < 1.2
