"""Ranks solved for a budget of trainable parameters."""

import json
from dataclasses import replace

import pytest
from tiny_experiment import WIDTH

from randlora_core.experiment import backbones
from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.interface import find_experiment
from randlora_core.experiment.planning import plan_run, plan_runs
from randlora_core.experiment.rates import build_config
from randlora_core.experiment.running import run
from randlora_core.models.counts import closest_rank, count_trainable

SHAPES = {"0": (24, WIDTH), "3": (2, 24)}
"""(out, in) of the tiny network's layers."""

# Experiment, backbone, LoRA's ranks, and the closest ranks of RandLoRA, from sums over the layers' published sizes.
CLOSEST = [
    ("vision_language", "clip_vit_b32", (1, 2, 4, 8, 16, 32, 64, 128), (195, 95, 39, 19, 9, 5, 2, 1)),
    ("vision", "clip_vit_b32", (1, 2, 4, 8, 16, 32, 64, 128), (383, 109, 43, 21, 10, 5, 3, 1)),
    ("vision_language", "clip_vit_l14", (1, 2, 4, 8, 16, 32, 64, 128), (256, 114, 56, 27, 13, 6, 3, 2)),
    ("vision_language", "clip_vit_h14", (1, 2, 4, 8, 16, 32, 64, 128), (342, 156, 71, 33, 16, 8, 4, 2)),
    ("commonsense_reasoning", "qwen2_05b", (16, 32, 64), (10, 5, 3)),
    ("commonsense_reasoning", "phi3_mini", (16, 32, 64), (42, 21, 10)),
    ("commonsense_reasoning", "llama3_8b", (16, 32, 64), (61, 30, 15)),
]


@pytest.fixture
def layered(tiny):
    """The tiny experiment, which says what its layers are."""
    return replace(tiny, adapted_shapes=lambda config: SHAPES)


@pytest.mark.parametrize(("name", "backbone", "lora_ranks", "ranks"), CLOSEST)
def test_randlora_gets_the_rank_closest_to_loras_parameters(name, backbone, lora_ranks, ranks):
    """Neither weights nor a hub are here: the models are their published sizes."""
    experiment, found = find_experiment(name), []
    for rank in lora_ranks:
        overrides = [f"backbone={backbone}", "adapter=randlora", f"adapter.budget=lora{rank}"]
        adapter = build_config(experiment, overrides).adapter
        found.append(adapter.options["rank"])
        assert adapter.label == f"RandLoRA-{adapter.options['rank']}"
    assert tuple(found) == ranks


def test_the_budget_of_the_papers_clip(layered):
    """LoRA-32 has 6,881,280 parameters on both towers of B/32, RandLoRA-5 6,202,548."""
    overrides = ["backbone=clip_vit_b32", "adapter=randlora", "adapter.budget=lora32"]
    budget = build_config(find_experiment("vision_language"), overrides).adapter.budget
    assert (budget.asked, budget.parameters, budget.trainable) == ("lora32", 6_881_280, 6_202_548)
    assert budget.describe() == "lora32: 6,881,280 parameters; the adapter has 6,202,548 (-9.9%)"


@pytest.mark.parametrize(
    ("overrides", "rank", "trainable"),
    [
        (["adapter=lora", "adapter.budget=lora2"], 2, 124),
        (["adapter=lora", "adapter.budget=248"], 2, 124),  # of at most the smaller side, which is 2
        (["adapter=lora", "adapter.budget=42"], 1, 62),
        (["adapter=lora", "adapter.budget=70"], 1, 62),
        (["adapter=dora", "adapter.budget=100"], 1, 88),
        (["adapter=randlora", "adapter.budget=lora1"], 2, 88),  # 6 x (2 + 12) + 1 x (2 + 2)
        (["adapter=randlora", "adapter.budget=324"], 1, 162),  # 12 x (1 + 12) + 2 x (1 + 2)
        (["adapter=randdora", "adapter.budget=76"], 2, 114),
        (["adapter=vera", "adapter.budget=lora1"], 18, 62),  # 2 ranks and 24 + 2 outputs
        (["adapter=vera", "adapter.budget=19"], 1, 28),
    ],
)
def test_every_method_with_a_rank_has_it_solved(layered, overrides, rank, trainable):
    adapter = build_config(layered, overrides).adapter
    assert adapter.options["rank"] == rank and adapter.budget.trainable == trainable
    assert adapter.label.endswith(f"-{rank}")


def test_nola_has_its_number_of_bases_solved(layered):
    adapter = build_config(layered, ["adapter=nola", "adapter.budget=lora1"]).adapter  # 62 over 2 layers, twice
    options = adapter.options
    assert (options["num_bases_a"], options["num_bases_b"], options["rank"]) == (15, 15, 1)
    assert adapter.budget.trainable == 60 and adapter.label == "NoLA-1 with 15 bases"
    assert build_config(layered, ["adapter=nola", "adapter.budget=3"]).adapter.options["num_bases_a"] == 1
    named = ["adapter=nola", "adapter.budget=lora1", "adapter.label=mine"]
    assert build_config(layered, named).adapter.label == "mine"


def test_of_two_equally_close_ranks_the_one_with_fewer_parameters_counts():
    square = {"a": (2, 2)}
    assert [count_trainable(square, "randlora", rank) for rank in (1, 2)] == [6, 4]
    assert closest_rank(square, "randlora", 5) == 2
    assert [count_trainable(square, "lora", rank) for rank in (1, 2)] == [4, 8]
    assert closest_rank(square, "lora", 6) == 1


def test_a_solved_rank_and_a_given_one_are_the_same_run(layered, results):
    own = ["adapter=randlora", "training.learning_rate=0.01", results]
    solved, given = (plan_run(layered, [*own, text]) for text in ("adapter.budget=lora1", "adapter.rank=2"))
    other = plan_run(layered, [*own, "adapter.budget=200"])
    assert solved.run_id == given.run_id != other.run_id
    assert solved.identity == given.identity and solved.label == given.label == "RandLoRA-2"


def test_a_record_and_a_printed_line_say_how_far_off_the_rank_is(layered, results, capsys):
    record = run(layered, ["adapter=randlora", "adapter.budget=lora1", "training.learning_rate=0.01", results])
    assert record["config"]["adapter"]["budget"] == {"asked": "lora1", "parameters": 62, "trainable": 88}
    assert record["parameters"]["trainable"] == 88
    assert "budget lora1: 62 parameters; the adapter has 88 (+41.9%)\n" in capsys.readouterr().out
    base = json.loads(json.dumps(record["config"]))
    assert build_config(layered, [], base).adapter.options["rank"] == 2
    plain = run(layered, ["adapter=lora", "adapter.rank=1", "training.learning_rate=0.01", results])
    assert plain["config"]["adapter"]["budget"] is None and "budget" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["adapter=full", "adapter.budget=lora4"],
            ["adapter.budget='lora4'", "'full'", "no rank", "accepted: randlora"],
        ),
        (["adapter=zero_shot", "adapter.budget=9"], ["adapter.budget=9", "'zero_shot'", "no rank"]),
        (["adapter.rank=4", "adapter.budget=lora4"], ["adapter.rank", "'lora4'", "accepted: one of them"]),
        (["adapter.budget=lora4", "+adapter.rank=4"], ["adapter.rank", "'lora4'", "accepted: one of them"]),
        (["adapter=nola", "adapter.budget=99", "adapter.num_bases_b=2"], ["adapter.num_bases_b", "one of them"]),
        (["adapter.budget=lora4", "adapter.rank_pattern={fc: 2}"], ["adapter.rank_pattern", "one of them"]),
        (["adapter.budget=vera4"], ["adapter.budget='vera4'", "such as lora32, or a whole number of parameters"]),
        (["adapter.budget=1e12"], ["adapter.budget=1000000000000.0", "or a whole number of parameters"]),
        (["adapter.budget=lora3"], ["adapter.budget='lora3'", "smallest side of a layer is 2", "lora1 to lora2"]),
        (
            ["adapter=randlora", "adapter.budget=10"],
            ["adapter.budget=10", "the closest is rank 2 with 88", "accepted: at least 59 parameters"],
        ),
        (
            ["adapter=randlora", "adapter.budget=325"],
            ["adapter.budget=325", "the closest is rank 1 with 162", "accepted: at most 324 parameters"],
        ),
        (["adapter=lora", "adapter.budget=41"], ["adapter.budget=41", "rank 1 with 62", "at least 42 parameters"]),
        (["adapter=vera", "adapter.budget=18"], ["adapter.budget=18", "rank 1 with 28", "at least 19 parameters"]),
        (["adapter=nola", "adapter.budget=1"], ["num_bases_a 1 with 4", "accepted: at least 3 parameters"]),
        (["adapter.budget=lora0"], ["adapter.budget='lora0'", "such as lora32"]),
        (["adapter.budget=1.5"], ["adapter.budget=1.5", "a whole number of parameters"]),
        (["adapter.budget=-3"], ["adapter.budget=-3", "a whole number of parameters"]),
        (["adapter.budget=true"], ["adapter.budget=True", "a whole number of parameters"]),
        (["adapter.budget=[3]"], ["adapter.budget=[3]", "a whole number of parameters"]),
    ],
)
def test_what_cannot_be_solved_is_one_line_with_what_is_accepted(layered, overrides, named):
    with pytest.raises(ValueError) as caught:
        build_config(layered, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


def test_an_experiment_that_does_not_say_its_layers_solves_no_budget(tiny):
    with pytest.raises(ValueError, match=r"budget='lora4': tiny does not know its layers; accepted: adapter\.rank"):
        build_config(tiny, ["adapter.budget=lora4"])


def test_targets_decide_about_the_budget_and_a_model_is_looked_at_once(monkeypatch, tmp_path):
    experiment, built, original = find_experiment("vision_language"), [], backbones.build_backbone
    monkeypatch.setattr(backbones, "build_backbone", lambda *a, **k: built.append(k) or original(*a, **k))
    backbones._find_shapes.cache_clear()
    own = ["backbone=mini_clip", "adapter=randlora", "adapter.budget=lora16", "training.precision=fp32"]
    places = [f"paths.results={tmp_path}", "dataset=digits"]
    planned = plan_runs(experiment, [[*own, *places, f"seed={seed}", f"shots={seed + 1}"] for seed in range(20)])
    assert {entry.config.adapter.options["rank"] for entry in planned} == {2} and len(built) == 1
    assert built[0]["pretrained"] is False and built[0]["device"] == "meta"
    narrow = build_config(experiment, [*own, "adapter.targets=[attn.out_proj]"]).adapter.budget
    # 16 (w + w) for six layers of width 192 in the image tower and four of width 128 in the text tower
    assert narrow.parameters == 16 * (6 * 384 + 4 * 256) and len(built) == 2


def test_vision_counts_the_image_tower_alone():
    shapes = find_experiment("vision").adapted_shapes(build_config(find_experiment("vision"), ["backbone=mini_clip"]))
    assert len(shapes) == 18 and set(shapes.values()) == {(576, 192), (768, 192), (192, 768)}
    assert all(name.startswith("transformer.") for name in shapes)


def test_presets_with_a_rank_name_the_budget():
    for path in sorted((CONFIGS / "adapter").glob("*.yaml")):
        text = path.read_text()
        if "\n  - randlora\n" not in text:  # the others have its budget
            assert ("\nrank: " in text) == ("\nbudget: null" in text), path.name
