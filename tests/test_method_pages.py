"""Every method has a page, and the parameters that the pages give are those that are counted."""

import re
from pathlib import Path

import pytest
from torch import nn

from randlora_core import (
    METHODS,
    DoRAConfig,
    LoRAConfig,
    NoLAConfig,
    RandLoRAConfig,
    VeRAConfig,
    count_parameters,
    inject_adapter,
)

PAGES = Path(__file__).resolve().parents[1] / "docs" / "methods"
CONFIGS = {config.__name__: config for config in (DoRAConfig, LoRAConfig, NoLAConfig, RandLoRAConfig, VeRAConfig)}
LINE = re.compile(r"^\| `(\w+)\((.*)\)` \| ([\d,]+) \|$", re.MULTILINE)


def fields_of(text: str) -> dict[str, int | bool]:
    pairs = (part.split("=") for part in text.split(", "))
    return {name: value == "True" if value in ("True", "False") else int(value) for name, value in pairs}


def test_there_is_a_page_for_every_method():
    assert {path.stem for path in PAGES.glob("*.md")} == set(METHODS)


@pytest.mark.filterwarnings("ignore:the rank of")
@pytest.mark.parametrize("method", METHODS)
def test_parameters_on_the_page_are_counted(method):
    text = (PAGES / f"{method}.md").read_text()
    lines = LINE.findall(text)
    assert len(lines) >= 3 and text.count("Config(") == len(lines)
    for name, fields, count in lines:
        config = CONFIGS[name](**fields_of(fields))
        assert config.method == method
        model = inject_adapter(nn.Sequential(nn.Linear(768, 768, device="meta")), config, ("0",))
        assert count_parameters(model).trainable == int(count.replace(",", "")), (name, fields)
