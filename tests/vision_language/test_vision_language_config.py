import pytest

from randlora_core.adapters import METHODS
from randlora_core.experiment.compose import CONFIGS, choices
from randlora_core.experiment.rates import build_config
from vision_language.experiment import EXPERIMENT

GROUPS = ("adapter", "backbone", "tracking")
NEEDED = {"peft": ["adapter.peft_type=HIRA"]}
"""What a preset leaves to the run."""


def test_the_groups_are_those_of_the_entry():
    others = {"accelerate", "comparison", "executor", "recipe"}
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir()} - others == set(GROUPS)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in choices(group)])
def test_every_choice_of_every_group_becomes_a_configuration(group, name):
    config = build_config(EXPERIMENT, [f"{group}={name}", *NEEDED.get(name, [])])
    chosen = getattr(config, group)
    if group == "adapter":
        own = (CONFIGS / "adapter" / f"{name}.yaml").read_text(encoding="utf-8")
        stated = "null" if chosen.method == "peft" else chosen.label.rsplit("-", 1)[0]
        assert f"label: {stated}" in own
        assert chosen.method in (*METHODS, "peft", "zero_shot", "full", "linear_probe")
        others = {
            build_config(EXPERIMENT, [f"adapter={other}", *NEEDED.get(other, [])]).adapter
            for other in choices("adapter")
            if other != name
        }
        assert chosen not in others
    else:
        assert chosen.name == name


def test_presets_cover_every_method():
    configs = [
        build_config(EXPERIMENT, [f"adapter={name}", *NEEDED.get(name, [])]).adapter for name in choices("adapter")
    ]
    assert {config.method for config in configs} == {*METHODS, "peft", "zero_shot", "full", "linear_probe"}
    assert len({config.label for config in configs}) == len(configs)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("shotz=3", ("'shotz'", "(near: shots)", "fraction")),
        ("training.objectiv=in_batch", ("'training.objectiv'", "(near: objective)")),
        ("training.objective=all", ("training.objective='all'", "'in_batch' or 'class_wise'")),
        ("backbone=resnet", ("backbone=resnet", "mini_clip", "clip_vit_b32")),
        ("adapter=lorra", ("adapter=lorra", "randlora", "linear_probe")),
        ("adapter.method=foo", ("'foo'", "linear_probe", "zero_shot", "randlora")),
    ],
)
def test_bad_overrides_are_one_line_with_the_accepted_values(override, named):
    with pytest.raises(ValueError) as caught:
        build_config(EXPERIMENT, [override])
    assert "\n" not in str(caught.value)
    for part in named:
        assert part in str(caught.value)
