"""What the configuration and the identity of a vision run hold beside what every run on images has."""

import pytest

from randlora_core.adapters import METHODS
from randlora_core.experiment.compose import choices
from randlora_core.experiment.identity import identify_settings
from randlora_core.experiment.planning import plan_runs
from randlora_core.experiment.rates import build_config
from randlora_core.models import BACKBONES
from randlora_core.models.dinov2 import SOURCES
from vision.experiment import EXPERIMENT

CLIP = ("mini_clip", "clip_vit_b32", "clip_vit_l14", "clip_vit_h14")
OTHER_RATES = ("training.head_learning_rate=0.01", "training.head_learning_rate=null")


def digests(*overrides):
    config = build_config(EXPERIMENT, ["training.learning_rate=0.001", *overrides])
    return identify_settings(config.identity(config.training.learning_rate if config.is_fitted else None), "vision")


@pytest.mark.parametrize("method", choices("adapter"))
def test_every_method_becomes_a_configuration_and_zero_shot_needs_clip(method):
    own = [f"adapter={method}", *(["adapter.peft_type=HIRA"] if method == "peft" else [])]
    config = build_config(EXPERIMENT, [*own, "backbone=mini_clip"])
    assert config.adapter.method in (*METHODS, "peft", "zero_shot", "full", "linear_probe")
    if method != "zero_shot":
        assert build_config(EXPERIMENT, own).adapter == config.adapter


def test_the_default_needs_no_hub_and_the_head_has_the_official_rate():
    config = build_config(EXPERIMENT, [])
    assert (config.backbone.name, config.backbone.options["image_size"]) == ("vit_s14_focus", 98)
    assert config.training.head_learning_rate == 1e-3 and config.trains_head


@pytest.mark.parametrize("name", SOURCES)
def test_zero_shot_without_texts_is_refused_before_anything_is_built(name):
    with pytest.raises(ValueError) as caught:
        plan_runs(EXPERIMENT, [["adapter=zero_shot", f"backbone={name}"]])
    assert str(caught.value).startswith(f"adapter.method='zero_shot' needs class texts, which backbone '{name}'")
    assert "accepted: a model of CLIP, or another method" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CLIP)
def test_every_model_of_clip_has_zero_shot(name):
    assert not build_config(EXPERIMENT, ["adapter=zero_shot", f"backbone={name}"]).trains_head


@pytest.mark.parametrize("adapter", ["lora", "full", "randlora"])
def test_the_heads_rate_is_part_of_the_identity_where_there_is_a_trained_head(adapter):
    for name in SOURCES:
        given = (f"adapter={adapter}", f"backbone={name}")
        found = [digests(*given, *more) for more in ((), (OTHER_RATES[0],), (OTHER_RATES[1],))]
        for key in ("settings", "group", "tuning"):
            assert len({entry[key] for entry in found}) == 3


@pytest.mark.parametrize("given", [(f"adapter={a}", f"backbone={b}") for a in ("lora", "full") for b in CLIP])
def test_it_is_no_part_where_the_classes_are_texts(given):
    assert all(digests(*given, other) == digests(*given) for other in OTHER_RATES)


@pytest.mark.parametrize("given", [("adapter=linear_probe",), ("adapter=linear_probe", "backbone=mini_clip")])
def test_a_probe_is_not_trained_and_does_not_depend_on_it(given):
    assert all(digests(*given, other) == digests(*given) for other in OTHER_RATES)


@pytest.mark.parametrize("override", ["shots=4", "fraction=0.5", "training.crop=0.5", "backbone.image_size=112"])
def test_images_are_part_of_the_identity(override):
    assert digests(override)["settings"] != digests()["settings"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.head_learning_rate=0", "training.head_learning_rate=0; accepted: greater than 0"),
        ("training.head_learning_rate=fast", "training.head_learning_rate='fast'; accepted: a valid number"),
        ("training.head_learning_rat=1", "unknown setting 'training.head_learning_rat' (near: head_learning_rate)"),
        ("training.objective=in_batch", "unknown setting 'training.objective'"),
    ],
)
def test_bad_values_are_one_line(override, message):
    with pytest.raises(ValueError) as caught:
        build_config(EXPERIMENT, [override])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_names_above_are_all_models_that_take_images():
    assert {name for name in BACKBONES if "clip" in name} == set(CLIP)
    assert {name for name in BACKBONES if "vit_s14" in name or "dinov2" in name} == set(SOURCES)
