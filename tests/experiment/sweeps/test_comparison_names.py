import re

import pytest

from randlora_core.experiment.sweeps.comparison_file import load_comparison
from randlora_core.experiment.sweeps.comparison_names import comparison_names, find_comparison, scale_of

FILE = """
experiment: tiny
axes: {rule: [sum, difference]}
seeds: [1, 2]
methods:
  - {overrides: [adapter=lora, adapter.rank=2]}
tuning: {seed: 101, num_values: 5, limit: 9}
"""


@pytest.fixture
def configs(tmp_path):
    """A tree with `default` that has no scales, `ablation` at two of them, and `sketch` at all three."""
    texts = {
        "default": FILE,
        "paper/ablation": FILE + "table: 3\n",
        "mini/ablation": "like: paper/ablation\nseeds: [5]\n",
        "demo/sketch": "like: default\nseeds: [6]\n",
        "paper/sketch": FILE,
        "mini/sketch": "like: mini/ablation\naxes: {rule: [difference]}\n",
    }
    for name, text in texts.items():
        file = tmp_path / "comparison" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_every_file_has_a_name(configs):
    names = ["default", "demo/sketch", "mini/ablation", "mini/sketch", "paper/ablation", "paper/sketch"]
    assert comparison_names(configs) == names
    for name in names:
        assert find_comparison(name, configs=configs) == configs / "comparison" / f"{name}.yaml"


@pytest.mark.parametrize(
    ("name", "scale", "found"),
    [
        ("sketch", None, "demo/sketch"),
        ("ablation", None, "paper/ablation"),
        ("ablation", "mini", "mini/ablation"),
        ("mini/ablation", "mini", "mini/ablation"),
        ("table3", None, "paper/ablation"),
        ("table3", "mini", "mini/ablation"),
    ],
)
def test_the_scale_is_chosen_or_else_demo_before_paper_before_mini(configs, name, scale, found):
    assert find_comparison(name, scale, configs) == configs / "comparison" / f"{found}.yaml"


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("huge", None, "unknown comparison 'huge'; accepted: ablation, default, sketch, table3"),
        ("table9", "mini", "unknown comparison 'table9'; accepted: ablation, default, sketch, table3"),
        ("ablation", "demo", "scale=demo of comparison 'ablation'; accepted: scale=paper, scale=mini"),
        ("tiny/ablation", None, "scale=tiny of comparison 'ablation'; accepted: scale=paper, scale=mini"),
        ("default", "mini", "scale=mini of comparison 'default'; accepted: no scale"),
        ("mini/ablation", "paper", "scale=paper of comparison 'mini/ablation'; accepted: scale=mini"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_is(configs, name, scale, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        find_comparison(name, scale, configs)


def test_records_and_results_carry_the_scale(configs):
    found = {name: load_comparison(name, configs=configs) for name in comparison_names(configs)}
    assert {name: comparison.name for name, comparison in found.items()} == {
        "default": "default",
        "demo/sketch": "sketch_demo",
        "mini/ablation": "ablation_mini",
        "mini/sketch": "sketch_mini",
        "paper/ablation": "ablation_paper",
        "paper/sketch": "sketch_paper",
    }
    assert [scale_of(found[name].path) for name in ("default", "mini/sketch")] == [None, "mini"]
    folder = configs.name
    assert found["mini/sketch"].describe() == f"sketch at scale mini: {folder}/comparison/mini/sketch.yaml"
    assert found["default"].describe() == f"default: {folder}/comparison/default.yaml"


def test_a_file_may_be_like_one_of_another_scale_and_that_like_a_third(configs):
    sketch = load_comparison("sketch", scale="mini", configs=configs)
    assert sketch.file.axes == ({"rule": ("difference",)},) and sketch.seeds == (5,) and sketch.file.table == 3
    (configs / "comparison" / "paper" / "ablation.yaml").write_text("like: mini/ablation\n")
    message = r"^ablation\.yaml: like='paper/ablation'; accepted: default, demo/sketch, "
    with pytest.raises(ValueError, match=message):
        load_comparison("ablation", configs=configs)
