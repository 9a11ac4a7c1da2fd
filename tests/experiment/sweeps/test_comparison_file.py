import pytest

from randlora_core.experiment.rates import build_config
from randlora_core.experiment.sweeps.comparison_file import Row, load_comparison, option_of, select

SMALL = """
experiment: tiny
axes: {rule: [sum, difference]}
seeds: [1, 2]
overrides: [training.steps=2]
methods:
  - {overrides: [adapter=zero_shot]}
  - {overrides: [adapter=lora, adapter.rank=2], centre: 1.0e-3}
  - {overrides: [adapter=randlora, adapter.rank=2], centre: 2.0e-3}
pairs:
  - [RandLoRA-2, LoRA-2]
tuning: {seed: 101, num_values: 5, limit: 9}
"""


@pytest.fixture
def load(tiny):
    """Loads a comparison of the given text, with the arguments of `load_comparison`."""

    def read(text=SMALL, name="small", **arguments):
        (tiny.configs / "comparison" / f"{name}.yaml").write_text(text)
        return load_comparison(name, configs=tiny.configs, **arguments)

    return read


def test_the_runs_go_column_by_column_row_by_row_seed_by_seed(load):
    comparison = load(overrides=("training.clip=2",))
    runs = [overrides for _, overrides in comparison.runs("tiny")]
    assert len(runs) == 12
    assert runs[0] == ("training.steps=2", "training.clip=2", "adapter=zero_shot", "rule=sum", "seed=1")
    assert [text for texts in runs for text in texts if text.startswith("rule=")] == ["rule=sum"] * 6 + [
        "rule=difference"
    ] * 6
    assert [texts[-1] for texts in runs[:4]] == ["seed=1", "seed=2", "seed=1", "seed=2"]
    assert comparison.file.methods[1] == Row(overrides=("adapter=lora", "adapter.rank=2"), centre=1e-3)
    tuned = [overrides[-1] for _, overrides in comparison.runs("tiny", [101])]
    assert tuned == ["seed=101"] * 6


def test_the_command_line_narrows_and_has_the_last_word(load):
    comparison = load(axes={"rule": ["difference"]}, seeds=[7], overrides=("training.steps=9",))
    runs = [overrides for _, overrides in comparison.runs("tiny")]
    assert len(runs) == 3 and all({"rule=difference", "seed=7"} <= set(overrides) for overrides in runs)
    assert all(overrides.index("training.steps=2") < overrides.index("training.steps=9") for overrides in runs)


def test_the_command_line_chooses_among_the_panels_that_rows_with_axes_of_their_own_make(load):
    """A value of one panel does not move the rows of another one there; a file of one panel takes any value."""
    text = SMALL.replace(
        "adapter.rank=2], centre: 2.0e-3}", "adapter.rank=2], centre: 2.0e-3, axes: {rule: [product]}}"
    )
    runs = load(text, axes={"rule": ["product"]}).runs("tiny")
    assert {row.overrides[0] for row, _ in runs} == {"adapter=randlora"}
    runs = load(text, axes={"rule": ["sum"]}).runs("tiny")
    assert {row.overrides[0] for row, _ in runs} == {"adapter=zero_shot", "adapter=lora"}
    assert len(load(axes={"rule": ["product"]}).runs("tiny")) == 3 * 2


def test_pairs_stand_for_all_experiments_or_for_each_its_own(load):
    assert load().file.pairs_of("tiny") == load().file.pairs_of("other") == (("RandLoRA-2", "LoRA-2"),)
    own = load(SMALL.replace("pairs:\n  - [RandLoRA-2, LoRA-2]", "pairs: {tiny: [[LoRA-2, Zero-shot]]}")).file
    assert own.pairs_of("tiny") == (("LoRA-2", "Zero-shot"),) and own.pairs_of("other") == ()


def test_some_columns_have_settings_of_their_own(load):
    where = "where:\n  - {at: {rule: difference}, overrides: [training.steps=45]}\n"
    comparison = load(SMALL + where, overrides=("training.steps=7",))
    for rule, own in (("sum", ["2", "7"]), ("difference", ["2", "45", "7"])):
        runs = [texts for _, texts in comparison.runs("tiny") if f"rule={rule}" in texts]
        assert len(runs) == 6
        for texts in runs:
            assert [text.split("=")[1] for text in texts if text.startswith("training.steps=")] == own


def test_a_row_may_stand_at_other_values(load):
    text = SMALL.replace("[adapter=zero_shot]}", "[adapter=zero_shot], axes: {rule: [difference]}}")
    runs = [overrides for row, overrides in load(text).runs("tiny") if row.overrides == ("adapter=zero_shot",)]
    assert len(runs) == 2 and all("rule=difference" in overrides for overrides in runs)


def test_the_command_line_chooses_among_the_values_of_such_a_row(load):
    text = SMALL.replace("[adapter=zero_shot]}", "[adapter=zero_shot], axes: {rule: [difference]}}")
    for rule, expected in (("sum", 0), ("difference", 2)):
        runs = [row for row, _ in load(text, axes={"rule": [rule]}).runs("tiny")]
        assert sum(row.overrides == ("adapter=zero_shot",) for row in runs) == expected and len(runs) == expected + 4


GRIDS = SMALL.replace(
    "axes: {rule: [sum, difference]}",
    "axes:\n  - {rule: &rules [sum, difference], shots: [1, 4], fraction: [null]}\n"
    "  - {rule: *rules, shots: [null], fraction: [0.5, 1.0]}",
)


def sizes(comparison, rule="sum"):
    runs = [texts for _, texts in comparison.runs("tiny", [1]) if f"rule={rule}" in texts]
    return [tuple(text for text in texts if text.startswith(("shots", "fraction"))) for texts in runs]


def test_several_grids_are_laid_side_by_side(load):
    columns = [
        ("shots=1", "fraction=null"),
        ("shots=4", "fraction=null"),
        ("shots=null", "fraction=0.5"),
        ("shots=null", "fraction=1.0"),
    ]
    for rule in ("sum", "difference"):
        assert sizes(load(GRIDS), rule) == [column for column in columns for _ in range(3)]


def test_the_command_line_chooses_among_several_grids(load):
    assert set(sizes(load(GRIDS, axes={"shots": [4]}))) == {("shots=4", "fraction=null")}
    assert set(sizes(load(GRIDS, axes={"fraction": [1.0, 0.5]}))) == {
        ("shots=null", "fraction=0.5"),
        ("shots=null", "fraction=1.0"),
    }
    with pytest.raises(ValueError, match=r"^--shots 3; accepted: 1, 4, null$"):
        load(GRIDS, axes={"shots": [3]})


def test_grids_of_different_axes_are_refused(load):
    text = GRIDS.replace("shots: [null], ", "")
    with pytest.raises(ValueError, match=r"^small\.yaml: axes: rule, shots, fraction and rule, fraction; accepted"):
        load(text)


def test_a_row_may_stand_at_some_of_the_values_alone(load):
    text = GRIDS.replace("[adapter=zero_shot]}", "[adapter=zero_shot], only: {rule: [sum], shots: [null]}}")
    runs = [texts for row, texts in load(text).runs("tiny", [1]) if row.overrides == ("adapter=zero_shot",)]
    assert len(runs) == 2 and all({"rule=sum", "shots=null"} <= set(texts) for texts in runs)
    assert len(load(text).runs("tiny", [1])) == 2 * 2 * 4 + 2
    with pytest.raises(ValueError, match=r"methods\.only\.rule=sun; accepted: sum, difference"):
        load(text.replace("only: {rule: [sum]", "only: {rule: [sun]"))


def test_rows_may_take_the_rates_of_their_settings_until_tuned_ones_are_asked_for(load):
    text = SMALL.replace("centre: 1.0e-3", "centre: 1.0e-3, tuned_on: [rule=sum]") + "tuned: false\n"

    def rates(comparison, adapter):
        runs = [texts for _, texts in comparison.runs("tiny") if f"adapter={adapter}" in texts]
        return {tuple(text for text in texts if "rate" in text) for texts in runs}

    settings, tuned = load(text), load(text, tuned=True)
    assert {adapter: rates(settings, adapter) for adapter in ("zero_shot", "lora", "randlora")} == {
        "zero_shot": {()},
        "lora": {()},
        "randlora": {()},
    }
    assert rates(tuned, "zero_shot") == {()}
    assert rates(tuned, "lora") == {("training.learning_rate=null", "training.rate_from=['rule=sum']")}
    assert rates(tuned, "randlora") == {("training.learning_rate=null", "training.rate_from=[]")}
    assert tuned.is_narrowed and not settings.is_narrowed
    given = load(text, tuned=True, overrides=("training.learning_rate=0.5",))
    assert ("training.learning_rate=null", "training.rate_from=['rule=sum']", "training.learning_rate=0.5") in rates(
        given, "lora"
    )  # the command line has the last word


def test_an_axis_value_of_null_is_one(load):
    text = SMALL.replace("axes: {rule: [sum, difference]}", "axes: {rule: [sum], shots: [4, null]}")
    shots = {text for _, texts in load(text).runs("tiny") for text in texts if text.startswith("shots=")}
    assert shots == {"shots=4", "shots=null"}


def test_a_row_names_the_settings_whose_rates_it_takes(load):
    text = SMALL.replace("centre: 1.0e-3", "centre: 1.0e-3, tuned_on: [rule=sum]")
    text = text.replace("centre: 2.0e-3", "centre: 2.0e-3, tuned_on: []")
    by_row = {row.overrides[0]: texts for row, texts in load(text).runs("tiny")}
    assert "training.rate_from=['rule=sum']" in by_row["adapter=lora"]
    assert "training.rate_from=[]" in by_row["adapter=randlora"]
    assert not any("rate_from" in text for text in by_row["adapter=zero_shot"])


OTHER = """
  - experiment: tiny_too
    axes: {colour: [red]}
    overrides: [adapter=lora, adapter.rank=3]
pairs:"""


def test_a_row_may_be_of_another_experiment(load):
    comparison = load(SMALL.replace("\npairs:", OTHER), axes={"rule": ["difference"]})
    assert len(comparison.runs("tiny")) == 6
    runs = [overrides for _, overrides in comparison.runs("tiny_too")]
    assert runs == [
        ("adapter=lora", "adapter.rank=3", "colour=red", f"seed={seed}") for seed in (1, 2)
    ]  # neither the file's overrides nor the command line's choice of rules concerns it


def test_a_file_may_state_only_what_differs_from_another(load):
    load()
    comparison = load("like: small\nseeds: [5]\n", name="other")
    assert comparison.seeds == (5,) and comparison.file.methods == load().file.methods
    assert comparison.name == "other"
    with pytest.raises(ValueError, match=r"other\.yaml: unknown setting 'seedz' \(near: seeds\)"):
        load("like: small\nseedz: [5]\n", name="other")
    with pytest.raises(ValueError, match=r"^other\.yaml: like='smaller'; accepted: none, other, small$"):
        load("like: smaller\n", name="other")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [1, 2]", "seeds: [1, 2]\nshotz: 4", r"^small\.yaml: unknown setting 'shotz'; accepted: experiment, "),
        ("seeds: [1, 2]", "", r"^small\.yaml: setting 'seeds' is missing$"),
        ("seeds: [1, 2]", "seeds: []", "seeds"),
        ("seeds: [1, 2]", "seeds: [one]", r"seeds\.0='one'"),
        ("seed: 101", "seed: 2", r"^small\.yaml: tuning\.seed=2 is a seed of the comparison; accepted: any other$"),
        ("[RandLoRA-2, LoRA-2]", "[RandLoRA-2]", r"pairs\.0"),
        ("centre: 1.0e-3", "centre: 0", r"methods\.1\.centre=0"),
        ("centre: 1.0e-3", "center: 1.0e-3", r"unknown setting 'methods\.1\.center'"),
        ("num_values: 5", "num_values: 2", r"tuning\.num_values=2"),
        (
            "pairs:",
            "where: [{at: {rule: sun}, overrides: []}]\npairs:",
            r"where\.at\.rule=sun; accepted: sum, differen",
        ),
        ("pairs:", "where: [{at: {size: 3}, overrides: []}]\npairs:", r"where\.at\.size=3; accepted: an axis of rule$"),
    ],
)
def test_a_file_is_read_strictly(load, old, new, message):
    assert old in SMALL
    with pytest.raises(ValueError, match=message) as caught:
        load(SMALL.replace(old, new))
    assert all(line.startswith("small.yaml: ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("override", "accepted"),
    [
        ("seed=3", "--seeds NUMBER"),
        ("+seed=3", "--seeds NUMBER"),
        ("rule=sum", "--rules VALUE"),
        ("~rule", "--rules VALUE"),
        ("adapter=lora", "--methods LABEL"),
    ],
)
def test_what_the_comparison_varies_is_no_override(load, override, accepted):
    with pytest.raises(ValueError) as caught:
        load(overrides=(override,))
    assert str(caught.value) == f"{override}: every run of a comparison has its own; accepted: {accepted} ..."


def test_what_the_rows_say_themselves_is_no_override(load):
    with pytest.raises(ValueError, match=r"^adapter\.rank=4: the comparison's rows say their own; accepted: settings"):
        load(overrides=("adapter.rank=4",))


def test_it_knows_whether_the_command_line_narrows_it(load):
    assert not load().is_narrowed and not load(seeds=[1, 2]).is_narrowed
    assert load(seeds=[1]).is_narrowed and load(axes={"rule": ["sum"]}).is_narrowed


@pytest.mark.parametrize(
    "value", ["sum", "1", "null", "true", "a b", "it's", "a,b", "{x}", "1e3", "inf", "a\\b", "a\\", "\\'\\\\"]
)
def test_any_text_may_be_a_value_on_an_axis(load, tiny, value):
    """The configuration gets it back unchanged and as text."""
    comparison = load(axes={"rule": [value]})
    assert {build_config(tiny, overrides).rule for _, overrides in comparison.runs("tiny")} == {value}


def test_only_its_own_axes_are_narrowed_and_never_to_the_tunings_seed(load):
    with pytest.raises(ValueError, match=r"--shots: this comparison does not vary it; accepted: shots=VALUE"):
        load(axes={"shots": [4]})
    with pytest.raises(ValueError, match=r"tuning\.seed=101 is a seed of the comparison"):
        load(seeds=[101])


def test_a_name_that_is_no_file_is_told_with_those_that_are(load, tiny):
    load()
    with pytest.raises(ValueError, match="unknown comparison 'huge'; accepted: none, small"):
        load_comparison("huge", configs=tiny.configs)


def test_parts_are_chosen_in_their_own_order():
    assert select(["a", "b", "c"], ["c", "a"], "method") == ("a", "c")
    assert select(["a", "b"], None, "method") == ("a", "b")
    with pytest.raises(ValueError, match="unknown method 'd'; accepted: a, b"):
        select(["a", "b"], ["d"], "method")
    assert [option_of(axis) for axis in ("dataset", "shots", "backbone")] == ["--datasets", "--shots", "--backbones"]


PUBLISHED = """published:
  - {file: table11_clip_vit_b32.csv, rows: {LoRA-2: {method: LoRA, rank: 32}, RandLoRA-2: {method: RandLoRA, rank: 6}}}
"""


def test_rows_may_stand_beside_published_ones(load):
    (entry,) = load(SMALL + PUBLISHED).file.published
    assert {number.columns["label"] for number in entry.numbers("LoRA-2")} == {"LoRA32"}
    assert load(SMALL).file.published == ()
    with pytest.raises(ValueError, match=r"small\.yaml: published\.rows\.LoRA-2: no number with method=LoRA, rank=31"):
        load(SMALL + PUBLISHED.replace("32}", "31}"))
    with pytest.raises(
        ValueError, match=r"small\.yaml: published: no file 'table0\.csv'; accepted: figure02_vram\.csv"
    ):
        load(SMALL + PUBLISHED.replace("table11_clip_vit_b32", "table0"))
