import pytest

from randlora_core.adapters import METHODS
from randlora_core.experiment import compose as module
from randlora_core.experiment.compose import choices, compose, expand
from randlora_core.experiment.rates import build_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tiny_experiment import make_experiment

    return make_experiment(tmp_path_factory.mktemp("tiny"))


def test_presets_cover_every_method_and_say_their_rank_in_the_label(tiny):
    names = [name for name in choices("adapter", tiny.configs) if name not in ("linear_probe", "peft")]
    configs = {name: build_config(tiny, [f"adapter={name}"]).adapter for name in names}
    assert {config.method for config in configs.values()} == {*METHODS, "zero_shot", "full"}
    labels = [config.label for config in configs.values()]
    assert len(set(labels)) == len(labels)
    assert build_config(tiny, ["adapter=lora", "adapter.rank=5"]).adapter.label == "LoRA-5"


def test_the_seed_reaches_the_bases(tiny):
    for name in ("randlora", "vera", "nola", "randdora"):
        assert build_config(tiny, [f"adapter={name}", "seed=7"]).adapter.options["seed"] == 7


def test_every_field_of_the_method_is_spelt_out(tiny):
    """A default that is changed in the library changes the configuration, and with it the run's identity."""
    assert build_config(tiny, ["adapter=lora", "~adapter.dropout"]) == build_config(tiny, ["adapter=lora"])
    options = build_config(tiny, ["adapter=lora", "~adapter.dropout"]).adapter.options
    assert options["dropout"] == 0.0 and options["alpha_pattern"] == {}


def test_a_layer_of_another_rank_is_a_mapping(tiny):
    for text in ("adapter.rank_pattern={c_fc: 4, attn.in_proj: 8}", "+adapter.rank_pattern={c_fc: 4, attn.in_proj: 8}"):
        assert build_config(tiny, [text]).adapter.options["rank_pattern"] == {"c_fc": 4, "attn.in_proj": 8}


def test_mappings_of_one_setting_are_merged(tiny):
    texts = ["adapter.rank_pattern={c_fc: 4, attn: 2}", "adapter.rank_pattern={attn: 8}"]
    assert build_config(tiny, texts).adapter.options["rank_pattern"] == {"c_fc": 4, "attn": 8}


def test_of_several_values_of_one_setting_the_last_counts(tiny):
    config = build_config(tiny, ["seed=1", "adapter=dora", "adapter.rank=3", "adapter=lora", "seed=2"])
    assert (config.seed, config.adapter.method, config.adapter.options["rank"]) == (2, "lora", 3)


def test_an_accepted_setting_belongs_to_the_chosen_preset(tiny):
    with pytest.raises(ValueError, match="num_bases_a"):
        build_config(tiny, ["adapter=nola", "adapter.basis_count=3"])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("adapter=lorra", ("adapter=lorra", "accepted: dora, full, linear_probe, lora, ")),
        ("backbone=resnet", ("backbone=resnet", "accepted: tiny")),
        ("rul=sum", ("'rul'", "(near: rule)", "accepted: ")),
        ("training.step=3", ("'training.step'", "(near: steps)", "accepted in training: ", "batch_size")),
        ("+extra=3", ("'extra'", "accepted: ", "rule")),
        ("+training.extra=3", ("'training.extra'", "accepted in training: ")),
        ("adapter.ranks=3", ("'ranks' of lora", "known: rank")),
        ("+adapter.extra=3", ("'extra' of lora", "known: rank")),
        ("adapter.method=foo", ("'foo'", "zero_shot", "randlora")),
        ("~training.steps", ("'training.steps' is missing",)),
        ("~training.stepz", ("~training.stepz", "no such setting")),
        ("~rool", ("~rool", "no such setting")),
        ("rule", ("'rule' is no override", "SETTING=VALUE")),
        ("seed=1,2", ("seed=1,2", "-m")),
        ("--dry-run", ("unknown option '--dry-run'", "SETTING=VALUE", "--help")),
        ("training.learning_rate=inf", ("training.learning_rate=inf", "a finite number")),
        ("training.steps=many", ("training.steps='many'", "a valid integer")),
        ("device=tpu", ("device='tpu'", "'auto', 'cpu' or 'cuda'")),
        ("seed=-1", ("seed=-1", "greater than or equal to 0")),
        ("workers=-1", ("workers=-1", "greater than or equal to 0")),
        ("adapter.rank=0", ("adapter.rank=0", "must be an integer of at least 1")),
        ("rule=3", ("rule=3", "a valid string", "rule=\"'3'\"")),
        ("=3", ("'=3' is no override", "SETTING=VALUE")),
        ("adapter@other=lora", ("is no override", "GROUP=NAME")),
        ("+adapter=lora", ("+adapter=lora: every run has one; accepted: adapter=lora",)),
        ("adapter.targets=[]", ("adapter.targets", "at least 1 item")),
        ("training.warmup_steps=4", ("training.warmup_steps=4; accepted: fewer than training.steps=4",)),
        ("rule=${nowhere}", ("nowhere",)),
        ("adapter.rank=${nowhere}", ("nowhere",)),
    ],
)
def test_bad_overrides_are_one_line_with_the_accepted_values(tiny, override, named):
    with pytest.raises(ValueError) as caught:
        build_config(tiny, [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter=zero_shot", "adapter.rank=3"],
        ["adapter=zero_shot", "+adapter.rank=3"],
        ["adapter=full", "adapter.targets=[attn.in_proj]"],
        ["training.keep_best=true"],
    ],
)
def test_settings_without_effect_are_refused(tiny, overrides):
    with pytest.raises(ValueError, match=r"has no effect on|evaluate\.every=STEPS"):
        build_config(tiny, overrides)


def test_compose_gives_plain_values(tiny):
    values = compose("tiny", ["seed=3"], tiny.configs)
    assert type(values) is dict and type(values["adapter"]) is dict and values["adapter"]["label"] == "LoRA-32"
    assert values["seed"] == 3 and "defaults" not in values


def test_a_base_stands_below_the_overrides(tiny):
    base = build_config(tiny, ["seed=5", "training.steps=9", "adapter.rank_pattern={fc: 2}"]).recorded(1e-3)
    config = build_config(tiny, ["training.batch_size=8"], base)
    assert (config.seed, config.training.steps, config.training.batch_size) == (5, 9, 8)
    assert config.adapter.options["rank_pattern"] == {"fc": 2} and config.training.learning_rate == 1e-3


def test_a_base_has_groups_of_its_own(tiny):
    base = build_config(tiny, []).recorded(1e-3)
    with pytest.raises(ValueError, match=r"^adapter=dora: the run has its own; accepted: settings within it"):
        build_config(tiny, ["adapter=dora"], base)


def test_what_is_composed_is_not_changed_by_whoever_gets_it(tiny):
    compose("tiny", ["adapter=lora"], tiny.configs)["adapter"]["rank"] = 99
    compose("tiny", ["adapter=lora", "adapter.rank=98"], tiny.configs)
    assert compose("tiny", ["adapter=lora"], tiny.configs)["adapter"]["rank"] == 32


def test_hydra_composes_once_for_each_choice_of_groups(tiny, monkeypatch):
    import hydra

    composed = []
    original = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *args, **kwargs: composed.append(kwargs) or original(*args, **kwargs))
    for cached in (module._composed, module._with_recipe, module._resolved_once, module._single_values, module._rules):
        cached.cache_clear()
    for seed in range(20):
        for name in ("lora", "randlora", "vera"):
            compose("tiny", [f"adapter={name}", f"seed={seed}", "adapter.rank=3"], tiny.configs)
    assert len(composed) == 3


@pytest.mark.parametrize(
    "settings",
    [
        ["rule=sum", "rule=difference", "rule=sum"],
        ["rule=sum", "rule=null"],
        ["rule=sum", "rule=${seed}", "seed=3"],
        ["rule=${seed}", "rule=sum"],
        ["seed=3", "adapter.rank=5", "seed=4", "rule='1'"],
        ["rule=sum", "~rule"],
        ["rule=sum", "rule.part=1"],
        ["rule={a: 1}", "rule=sum"],
    ],
)
def test_what_is_set_on_a_copy_of_the_resolved_values_is_what_omegaconf_sets(tiny, settings):
    """The settings that thousands of runs differ in take a short way to the same values."""
    texts = ["adapter=vera", *settings]  # vera's seed is the run's

    def outcome(make):
        try:
            return make()
        except ValueError as error:
            return str(error)

    direct = outcome(lambda: module._resolve("tiny", ("adapter=vera",), tuple(settings), tiny.configs, None))
    assert outcome(lambda: compose("tiny", texts, tiny.configs)) == direct


RECIPE = """
rules:
  - at: {experiment: tin*}
    overrides: [training.steps=7, training.clip=2.0]
  - at: {experiment: tiny, adapter: [lora, randlora*]}
    overrides: [adapter.rank=3, adapter.alpha=1]
  - at: {experiment: tiny, adapter: randlora_sparse}
    overrides: [adapter.rank=2, rule=difference]
  - at: {experiment: other, adapter: dora}
    overrides: [adapter.rank=9]
"""


@pytest.fixture
def with_recipe(tmp_path):
    from tiny_experiment import make_experiment

    experiment = make_experiment(tmp_path)
    (tmp_path / "configs" / "recipe").mkdir()
    (tmp_path / "configs" / "recipe" / "none.yaml").write_text("rules: []\n")
    (tmp_path / "configs" / "recipe" / "small.yaml").write_text(RECIPE)
    entry = tmp_path / "configs" / "tiny.yaml"
    entry.write_text(entry.read_text().replace("{tracking: none}", "{tracking: none}, {recipe: none}"))
    return experiment


@pytest.mark.parametrize(
    ("overrides", "steps", "rank", "rule"),
    [
        ("adapter=lora", 4, 32, "sum"),
        ("adapter=lora recipe=small", 7, 3, "sum"),
        ("adapter=lora recipe=small adapter.rank=5 rule=product", 7, 5, "product"),
        ("training.steps=9 adapter=randlora recipe=small", 9, 3, "sum"),
        ("adapter=randlora_sparse recipe=small", 7, 2, "difference"),
        ("adapter=randlora_sparse recipe=small recipe=none", 4, 6, "sum"),
    ],
)
def test_a_recipe_adds_the_overrides_of_the_rules_that_fit(with_recipe, overrides, steps, rank, rule):
    config = build_config(with_recipe, overrides.split())
    assert (config.training.steps, config.adapter.options["rank"], config.rule) == (steps, rank, rule)


def test_a_recipe_refuses_what_its_rules_do_not_name(with_recipe):
    message = r"^recipe=small has no settings for adapter=dora; accepted: lora, randlora\*, randlora_sparse$"
    with pytest.raises(ValueError, match=message):
        build_config(with_recipe, ["recipe=small", "adapter=dora"])
    with pytest.raises(ValueError, match=r"^unknown choice recipe=large; accepted: none, small$"):
        build_config(with_recipe, ["recipe=large"])


def test_several_values_stand_for_every_combination():
    assert expand(["adapter.rank=2,6", "b=3", "seed=1,2"]) == [
        ("adapter.rank=2", "b=3", "seed=1"),
        ("adapter.rank=2", "b=3", "seed=2"),
        ("adapter.rank=6", "b=3", "seed=1"),
        ("adapter.rank=6", "b=3", "seed=2"),
    ]
    assert expand([]) == [()] and expand(["a=[1,2]"]) == [("a=[1,2]",)]
    assert expand(["adapter=lora,dora"]) == [("adapter=lora",), ("adapter=dora",)]
    assert expand(["seed=range(1,4)"]) == [("seed=1",), ("seed=2",), ("seed=3",)]
    with pytest.raises(ValueError, match="no override"):
        expand(["nothing"])
    with pytest.raises(ValueError, match="accepted: values with commas between") as caught:
        expand(["adapter=glob(*)"])
    assert "\n" not in str(caught.value)
