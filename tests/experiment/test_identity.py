import copy

import pytest

from randlora_core.experiment import identity
from randlora_core.experiment.identity import canonical, group_name, run_id, without_seed

CONFIG = {
    "adapter": {"method": "randlora", "label": "RandLoRA-6", "rank": 6, "seed": 1},
    "backbone": {"name": "mini_clip"},
    "dataset": {"name": "digits"},
    "shots": 4,
    "seed": 1,
    "training": {"steps": 25, "learning_rate": 0.001},
    "paths": {"data": None, "results": "results"},
    "device": "auto",
    "threads": None,
    "workers": 0,
    "save": {"adapter": False},
    "tracking": {"name": "none"},
}
FACTS = {"data": "d1", "weights": "w1", "experiment": "vision_language"}


def test_the_id_is_fixed_over_machines_and_key_order():
    assert run_id(CONFIG, **FACTS) == "6879b5b61132f450"
    assert run_id(dict(reversed(CONFIG.items())), **FACTS) == run_id(CONFIG, **FACTS)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("paths", {"data": "/x"}),
        ("device", "cuda"),
        ("threads", 4),
        ("workers", 2),
        ("save", {"adapter": True}),
        ("tracking", {"name": "wandb"}),
    ],
)
def test_where_and_how_it_runs_is_no_part_of_it(section, value):
    assert run_id({**CONFIG, section: value}, **FACTS) == run_id(CONFIG, **FACTS)


def test_all_else_is(monkeypatch):
    original = run_id(CONFIG, **FACTS)
    changed = []
    for path, value in [(("adapter", "rank"), 7), (("seed",), 2), (("shots",), None), (("training", "steps"), 26)]:
        config = copy.deepcopy(CONFIG)
        node = config
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        changed.append(run_id(config, **FACTS))
    changed += [run_id(CONFIG, **{**FACTS, key: "other"}) for key in FACTS]
    monkeypatch.setattr(identity, "PROTOCOL", identity.PROTOCOL + 1)
    changed.append(run_id(CONFIG, **FACTS))
    assert len({original, *changed}) == len(changed) + 1


def test_seeds_of_one_configuration_share_a_group():
    other = copy.deepcopy(CONFIG)
    other["seed"] = other["adapter"]["seed"] = 2
    assert without_seed(other) == without_seed(CONFIG)
    assert group_name(other) == group_name(CONFIG)
    other["shots"] = 8
    assert group_name(other) != group_name(CONFIG)


def test_canonical_is_a_copy():
    canonical(CONFIG)["adapter"]["rank"] = 99
    assert CONFIG["adapter"]["rank"] == 6
