import dataclasses

import pytest
from tiny_experiment import TinyConfig

from randlora_core.experiment import identity
from randlora_core.experiment.identity import Identity, identify_settings, run_id
from randlora_core.experiment.planning import plan_run
from randlora_core.experiment.rates import build_config

SAME = [
    "paths.data=/x",
    "paths.results=/y",
    "device=cpu",
    "threads=1",
    "workers=2",
    "save.adapter=true",
    "save.state_seconds=1",
    "tracking=wandb",
    "evaluate.test=false",
    "evaluate.batch_size=7",
    "evaluate.every=2",
    "adapter.label=mine",
    "adapter.learning_rate=0.001",
]
"""Overrides that change nothing about the numbers of a run that is fitted with a learning rate of its own."""

OTHER = [
    "seed=1",
    "rule=difference",
    "adapter=dora",
    "adapter.rank=3",
    "adapter.alpha=2",
    "adapter.dropout=0.1",
    "adapter.rank_pattern={fc: 2}",
    "adapter.targets=['0']",
    "backbone.name=other",
    "+backbone.width=2",
    "training.steps=5",
    "training.batch_size=8",
    "training.accumulate=2",
    "training.learning_rate=0.5",
    "training.weight_decay=0",
    "training.clip=null",
    "training.schedule=linear",
    "training.warmup_steps=1",
    "training.precision=bf16",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tiny_experiment import make_experiment

    return make_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def settings(tiny):
    """From overrides to the three digests; the learning rate is given, so that none is looked up."""

    def digests(*overrides):
        config = build_config(tiny, ["training.learning_rate=0.001", *overrides])
        return identify_settings(config.identity(config.training.learning_rate), "tiny")

    return digests


def test_the_id_is_fixed_over_machines_and_key_order(monkeypatch):
    monkeypatch.setattr(identity, "PROTOCOL", 2)
    values = {"seed": 1, "training": {"steps": 25, "learning_rate": 0.001}, "adapter": {"method": "lora", "seed": 1}}
    digests = identify_settings(values, "tiny")
    assert identify_settings(dict(reversed(values.items())), "tiny") == digests
    assert run_id(Identity(**digests, data="d", weights="w")) == "39b300cba3d4ab4e"


def test_where_and_how_it_runs_is_no_part_of_it(settings):
    original = settings()
    for override in SAME:
        assert settings(override) == original, override


def test_all_that_changes_the_numbers_is(settings, monkeypatch):
    digests = {override: settings(override)["settings"] for override in OTHER}
    assert len({settings()["settings"], *digests.values()}) == len(OTHER) + 1, digests
    before = settings()
    monkeypatch.setattr(identity, "PROTOCOL", identity.PROTOCOL + 1)
    assert settings()["settings"] != before["settings"]


def test_the_lists_above_name_every_setting():
    """A setting that is added has to be put on one of the lists."""
    named = {text.lstrip("+").partition("=")[0] for text in (*SAME, *OTHER)}
    sections = {"training": TinyConfig.model_fields["training"].annotation, "evaluate": None, "save": None}
    sections["evaluate"] = TinyConfig.model_fields["evaluate"].annotation
    sections["save"] = TinyConfig.model_fields["save"].annotation
    fields = {name for name in TinyConfig.model_fields if name not in (*sections, "adapter", "backbone", "paths")}
    fields |= {f"{section}.{name}" for section, class_ in sections.items() for name in class_.model_fields}
    elsewhere = {"training.epochs", "training.keep_best", "training.rate_from"}  # have tests of their own
    assert fields - named - elsewhere == set()


def test_length_in_epochs_is_not_length_in_steps(settings):
    assert settings("training.steps=null", "training.epochs=4")["settings"] != settings("training.steps=4")["settings"]


def test_the_best_state_depends_on_when_it_is_looked_for(settings):
    every = ["evaluate.every=2", "evaluate.every=3"]
    kept = [settings(text, "training.keep_best=true")["settings"] for text in every]
    assert kept[0] != kept[1] and settings()["settings"] not in kept


def test_where_a_learning_rate_comes_from_does_not_matter(settings):
    """What counts is its value: tuned for another setting and given by hand it makes the same run."""
    assert settings("training.rate_from=['rule=difference']") == settings()


def test_a_whole_number_is_the_same_number_with_a_point(settings):
    assert settings("adapter.alpha=2") == settings("adapter.alpha=2.0") != settings()


def test_random_weights_make_zero_shot_depend_on_the_seed(settings):
    random = [settings("adapter=zero_shot", "+backbone.pretrained=false", f"seed={seed}") for seed in (1, 2)]
    assert random[0]["settings"] != random[1]["settings"] and random[0]["group"] == random[1]["group"]


def test_zero_shot_depends_on_neither_training_nor_seed(settings):
    original = settings("adapter=zero_shot")
    for override in ("training.steps=9", "training.learning_rate=0.5", "training.schedule=linear", "seed=4"):
        assert settings("adapter=zero_shot", override) == original
    assert settings("adapter=zero_shot", "training.precision=bf16") != original
    assert settings("adapter=zero_shot", "rule=difference") != original


def test_seeds_of_one_configuration_share_a_group(settings):
    for name in ("lora", "randlora"):  # the bases of randlora have the seed, too
        one, two = settings(f"adapter={name}", "seed=1"), settings(f"adapter={name}", "seed=2")
        assert one["group"] == two["group"] and one["settings"] != two["settings"]
        assert settings(f"adapter={name}", "adapter.rank=3")["group"] != one["group"]
        assert settings(f"adapter={name}", "training.learning_rate=0.5")["group"] != one["group"]


def test_a_tuning_leaves_learning_rate_seed_and_number_format_open(settings):
    original = settings()["tuning"]
    for override in ("training.learning_rate=0.5", "training.precision=bf16", "seed=3"):
        assert settings(override)["tuning"] == original
    for override in ("training.steps=5", "adapter.rank=3", "rule=difference", "training.batch_size=8"):
        assert settings(override)["tuning"] != original


def test_identifying_changes_no_value():
    values = {"seed": 1, "training": {"learning_rate": 1.0}, "adapter": {"seed": 1}}
    identify_settings(values, "tiny")
    assert values == {"seed": 1, "training": {"learning_rate": 1.0}, "adapter": {"seed": 1}}


def test_data_weights_and_experiment_are_part_of_the_run(tiny):
    planned = plan_run(tiny, [])
    ids = {planned.run_id}
    for name in ("data", "weights"):
        changed = dataclasses.replace(planned.identity, **{name: "another"})
        ids.add(run_id(changed))
        assert changed.settings == planned.identity.settings
    assert len(ids) == 3
    values = planned.config.identity(0.1)
    assert identify_settings(values, "tiny") != identify_settings(values, "other")


def test_a_setting_of_a_later_version_counts_where_it_is_not_neutral(settings, tiny):
    """Runs with dense bases keep the identity that they had before bases could be in groups."""
    dense = settings("adapter=randlora")
    assert settings("adapter=randlora", "adapter.groups=1") == dense
    assert settings("adapter=randlora", "adapter.groups=2") != dense
    assert "groups" not in build_config(tiny, ["adapter=randlora"]).adapter.options
    assert build_config(tiny, ["adapter=randlora_blocks"]).adapter.options["groups"] == "max"
