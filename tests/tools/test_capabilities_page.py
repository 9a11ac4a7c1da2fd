"""docs/capabilities.md says what happens when it is tried."""

from pathlib import Path

import pytest

from tools.capabilities_page import CAPABILITIES, INTRODUCTION, LAYERS, NO, SHOWN_METHODS, YES, answers, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "capabilities.md"
QUICK = ("Training and files", "Merging", "Many adapters")


@pytest.mark.parametrize(
    "capability",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CAPABILITIES],
)
def test_the_page_is_what_is_found(capability):
    assert table(capability, answers(capability)) in PAGE.read_text()


def test_the_page_has_its_introduction_every_table_and_no_other():
    text = PAGE.read_text()
    assert text.startswith(INTRODUCTION)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(CAPABILITIES)


def test_a_wrong_answer_would_show():
    wrong = {method: dict.fromkeys(LAYERS, NO) for method in SHOWN_METHODS}
    right = {method: dict.fromkeys(LAYERS, YES) for method in SHOWN_METHODS}
    text = PAGE.read_text()
    assert table("Training and files", right) in text
    assert table("Training and files", wrong) not in text
