"""Adapters that a layer does not allow are refused when runs are planned: nothing is printed, written or trained."""

import warnings
from dataclasses import replace

import pytest
from tiny_experiment import WIDTH
from tiny_variants import with_comparison

from randlora_core.adapters.inject import resolve
from randlora_core.experiment import adaptation
from randlora_core.experiment.commands import compare, train, tune
from randlora_core.experiment.interface import MissingInputError, find_experiment
from randlora_core.experiment.planning import plan_run, plan_runs
from randlora_core.experiment.running import run

SHAPES = {"0": (24, WIDTH), "3": (2, 24)}
"""(out, in) of the tiny network's layers."""

# Experiment, backbone, its first adapted layer, shape of that layer, bases of rank 64 there, and some names of layers.
MODELS = [
    ("vision_language", "mini_clip", "visual.transformer.resblocks.0.attn.in_proj", (576, 192), 3, "in_proj, out_proj"),
    ("vision", "dinov2_vit_b14", "blocks.0.attn.qkv", (2304, 768), 12, "qkv, proj, fc1, fc2"),
    ("commonsense_reasoning", "smollm2_135m", "model.layers.0.self_attn.q_proj", (576, 576), 9, "q_proj, k_proj"),
]

SETTINGS = [
    (
        ["adapter.rank=6", "adapter.groups=4"],
        "groups=4 does not divide the rank 6 of layer '{layer}'; accepted: 1, 2, 3, 6, or 'max'",
    ),
    (
        ["adapter.rank=1000"],
        "rank 1000 is above the smaller side of layer '{layer}' of shape {shape}; the limit is {side}",
    ),
    (["adapter.targets=[nope]"], "target 'nope' matches no layer; layers that can be adapted end in: {names}"),
    (["adapter.rank=64", "adapter.groups=64"], "groups=64 is above the {bases} bases of layer '{layer}', where "),
    (
        ["adapter.rank_pattern={nope: 2}"],
        "rank_pattern 'nope' matches none of the targets; layers that can be adapted ",
    ),
]

COMPARISON = """
experiment: tiny
axes: {rule: [sum]}
seeds: [1]
methods:
  - {overrides: [adapter=lora, adapter.rank=1], centre: 1.0e-3}
  - {overrides: [adapter=randlora, adapter.rank=2, adapter.groups=2], centre: 1.0e-3}
tuning: {seed: 101, num_values: 3, limit: 9}
"""
"""The second row has fewer bases on the tiny network's last layer than groups."""


@pytest.fixture
def layered(tiny):
    """The tiny experiment, which says what its layers are."""
    return replace(tiny, adapted_shapes=lambda config: SHAPES)


@pytest.mark.parametrize(("overrides", "message"), SETTINGS)
@pytest.mark.parametrize(("name", "backbone", "layer", "shape", "bases", "names"), MODELS)
@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_a_setting_that_a_layer_refuses_is_one_line_and_nothing_else(
    name, backbone, layer, shape, bases, names, overrides, message, multirun, tmp_path, capsys, monkeypatch
):
    """Neither the models of a hub nor data are here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = [f"backbone={backbone}", "adapter=randlora", *overrides, f"paths.results={tmp_path / 'results'}"]
    assert train.main(find_experiment(name), [*multirun, *own]) == 2
    shown = capsys.readouterr()
    expected = message.format(layer=layer, shape=shape, side=min(shape), bases=bases, names=names)
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith(f"error: {expected}")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_with_one_bad_value_trains_nothing(tmp_path, capsys):
    own = ["dataset=digits", "adapter=randlora", "adapter.rank=6", f"paths.results={tmp_path / 'results'}"]
    assert train.main(find_experiment("vision_language"), ["-m", *own, "adapter.groups=1,4"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: groups=4 does not divide the rank 6 of layer ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (compare.main, []),
        (compare.main, ["--dry-run"]),
        (compare.main, ["--dry-run", "--format=tsv"]),
        (tune.main, []),
    ],
)
def test_a_comparison_with_one_bad_row_begins_no_run(command, options, tmp_path, capsys):
    experiment = with_comparison(tmp_path, COMPARISON, adapted_shapes=lambda config: SHAPES)
    assert command(experiment, ["small", *options, f"paths.results={tmp_path / 'results'}"]) == 2
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("error: groups=2 is above the 1 bases of layer '3', where the update")
    assert not (tmp_path / "results").exists() and not (tmp_path / "records").exists()
    assert "seed" not in shown.out  # no run was named


def test_tables_of_committed_records_check_no_adapters(layered, results):
    bad = ["adapter=randlora", "adapter.rank=25", results]
    assert len(plan_runs(layered, [bad], inputs_needed=False)) == 1
    with pytest.raises(ValueError, match="rank 25 is above the smaller side of layer '0'"):
        plan_runs(layered, [bad])


def test_a_rank_that_lora_only_warns_of_is_planned_with_a_warning(layered, results):
    adaptation._check_adapter.cache_clear()
    with pytest.warns(UserWarning, match=r"the rank of 2 layers .* adds no expressiveness: '0' of .* has rank 100000"):
        planned = plan_run(layered, ["adapter=lora", "adapter.rank=100000", results])
    assert planned.status == "planned"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_run(layered, ["adapter=lora", "adapter.rank=2", results])


def test_layers_that_are_not_known_are_left_to_the_run(tiny, tmp_path, results):
    asked = []

    def absent(config):
        asked.append(config.seed)
        raise MissingInputError("the folder is not here")

    own = ["adapter=randlora", "training.learning_rate=0.01", results]
    experiment = replace(tiny, adapted_shapes=absent)
    lists = [[*own, f"adapter.rank={rank}", f"seed={seed}"] for rank in (2, 25) for seed in (1, 2)]
    assert {entry.status for entry in plan_runs(experiment, lists)} == {"planned"} and len(asked) == 1
    with pytest.raises(ValueError, match="rank 25 is above the smaller side of layer '0'"):
        run(experiment, lists[-1])
    assert len(list((tmp_path / "results" / "tiny").glob("*.json"))) == 1  # the failed record, as the run began


def test_an_adapter_is_checked_once_for_the_seeds_and_data_of_a_sweep(layered, results, monkeypatch):
    checked = []
    monkeypatch.setattr(adaptation, "resolve", lambda *given: checked.append(given) or resolve(*given))
    adaptation._check_adapter.cache_clear()
    lists = [
        ["adapter=randlora", f"adapter.rank={rank}", f"seed={seed}", f"rule={rule}", results]
        for rank in (1, 2)
        for seed in range(5)
        for rule in ("sum", "difference")
    ]
    assert len({entry.run_id for entry in plan_runs(layered, lists)}) == len(lists)
    assert [(config.rank, shapes) for config, shapes in checked] == [(1, SHAPES), (2, SHAPES)]


def test_shapes_of_a_quantised_model_need_no_bitsandbytes(monkeypatch):
    """So that a sweep is planned where it is submitted, and not only where it runs."""
    monkeypatch.setattr("randlora_core.models.language_models.missing_bitsandbytes", lambda: "is not here")
    overrides = ["backbone=smollm2_135m", "backbone.quantize=4bit", "adapter=randlora", "adapter.rank=1000"]
    with pytest.raises(ValueError, match="rank 1000 is above the smaller side of layer 'model"):
        plan_run(find_experiment("commonsense_reasoning"), overrides)
