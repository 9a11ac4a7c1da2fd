import pytest
from vision_language.config import UNADAPTED, build_config

from randlora_core.adapters import METHODS
from randlora_core.experiment.compose import choices, compose


@pytest.mark.parametrize("group", ["adapter", "backbone", "tracking"])
def test_every_choice_of_every_group_becomes_a_configuration(group):
    names = choices(group)
    assert names
    for name in names:
        config = build_config([f"{group}={name}"])
        chosen = getattr(config, group)
        assert getattr(chosen, "name", None) == name or group == "adapter"


def test_presets_cover_every_method_and_say_their_rank_in_the_label():
    configs = {name: build_config([f"adapter={name}"]).adapter for name in choices("adapter")}
    assert {config.method for config in configs.values()} == {*METHODS, *UNADAPTED}
    labels = [config.label for config in configs.values()]
    assert len(set(labels)) == len(labels)
    assert build_config(["adapter=lora", "adapter.rank=5"]).adapter.label == "LoRA-5"


def test_the_seed_reaches_the_bases():
    for name in ("randlora", "vera", "nola", "randdora"):
        assert build_config([f"adapter={name}", "seed=7"]).adapter.options["seed"] == 7


def test_a_folder_name_is_a_dataset():
    config = build_config(["dataset=caltech101_part", "paths.data=/some/folder"])
    assert (config.dataset.name, config.paths.data) == ("caltech101_part", "/some/folder")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("adapter=lorra", ("adapter/lorra", "randlora", "dora")),
        ("backbone=resnet", ("backbone/resnet", "mini_clip")),
        ("shotz=3", ("'shotz'", "shots", "fraction")),
        ("training.step=3", ("'training.step'", "accepted in training: steps")),
        ("adapter.ranks=3", ("'adapter.ranks'", "accepted in adapter: method", "rank")),
        ("+extra=3", ("'extra'", "shots")),
        ("+adapter.extra=3", ("'extra'", "randlora", "rank")),
        ("adapter.method=foo", ("'foo'", "zero_shot", "randlora")),
        ("shots", ("shots", "EQUAL")),
        ("--dry-run", ("unknown option '--dry-run'", "SETTING=VALUE", "--help")),
        ("adapter.rank_pattern={c_fc: 4}", ("'adapter.rank_pattern' holds entries", "+adapter.rank_pattern={")),
        ("training.learning_rate=inf", ("training.learning_rate=inf", "a finite number or null")),
        ("shots=many", ("shots='many'", "an integer or null")),
        ("training.precision=fp8", ("training.precision='fp8'", "auto, bf16, fp32")),
        ("device=tpu", ("device='tpu'", "auto, cpu, cuda")),
        ("adapter.rank=0", ("rank", "0")),
        ("seed=-1", ("seed=-1",)),
    ],
)
def test_bad_overrides_are_one_line_with_the_accepted_values(override, named):
    with pytest.raises(ValueError) as caught:
        build_config([override])
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


def test_settings_without_effect_are_refused():
    for overrides in (
        ["adapter=zero_shot", "+adapter.rank=3"],
        ["adapter=full", "adapter.targets=[attn.in_proj]"],
        ["shots=4", "fraction=0.5"],
    ):
        with pytest.raises(ValueError):
            build_config(overrides)


def test_an_accepted_list_belongs_to_the_chosen_preset():
    with pytest.raises(ValueError, match="num_bases_a"):
        build_config(["adapter=nola", "adapter.basis_count=3"])


def test_a_layer_of_another_rank_is_added_to_the_pattern():
    adapter = build_config(["+adapter.rank_pattern={c_fc: 4, attn.in_proj: 8}"]).adapter
    assert adapter.options["rank_pattern"] == {"c_fc": 4, "attn.in_proj": 8}


def test_compose_gives_plain_values():
    values = compose("vision_language", ["seed=3"])
    assert type(values) is dict and type(values["adapter"]) is dict and values["adapter"]["seed"] == 3
