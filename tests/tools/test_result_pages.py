"""README and docs/results say what the committed records say."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from randlora_core.experiment.sweeps.comparison_names import comparison_names
from tools import result_pages


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """README, pages and figures in a folder of their own, so that a test may change them."""
    shutil.copy(result_pages.README, tmp_path / "README.md")
    shutil.copytree(result_pages.RESULTS, tmp_path / "results")
    monkeypatch.setattr(result_pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(result_pages, "RESULTS", tmp_path / "results")
    return tmp_path


def test_the_committed_pages_are_those_of_the_committed_records():
    assert result_pages.main(["--check"]) == 0
    names = result_pages.recorded_comparisons()
    assert "default" in names
    for name in names:
        page = result_pages.page(name)
        images = re.findall(r"!\[[^]]+\]\(([\w.]+)\)", page)
        assert len(images) >= 2 and all((result_pages.RESULTS / image).is_file() for image in images)
        assert "validation score against learning rate" in page or "tuned" not in page


def test_every_comparison_with_committed_records_has_a_page(monkeypatch):
    """One without records has none, however it is named."""
    have = {name: result_pages._has_records(result_pages.load_comparison(name)) for name in comparison_names()}
    assert have["default"] and result_pages.recorded_comparisons() == [name for name in have if have[name]]
    monkeypatch.setattr(result_pages, "comparison_names", lambda: ["default"])
    other = dataclasses.replace(result_pages.load_comparison("default"), path=Path("configs/comparison/other.yaml"))
    monkeypatch.setattr(result_pages, "load_comparison", lambda name: other)
    assert result_pages.recorded_comparisons() == []


def test_a_report_is_computed_once(monkeypatch):
    """The README's table, the page, the figures and their names share it."""
    calls = []
    original = result_pages.committed_reports
    monkeypatch.setattr(result_pages, "committed_reports", lambda *given: calls.append(given) or original(*given))
    result_pages.reports_of.cache_clear()
    assert result_pages.main(["--check"]) == 0
    assert len(calls) == len(result_pages.recorded_comparisons())


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("README.md", "| LoRA-16"),
        ("results/default.md", "| LoRA-16"),
        ("results/README.md", "- gtsrb: RandLoRA-2 - LoRA-16"),
    ],
)
def test_a_changed_number_is_found_and_mended(copy, capsys, file, part):
    page = copy / file
    text = page.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(part) and "±" in line)
    page.write_text(text.replace(line, line.replace("±", "-")), encoding="utf-8")
    assert result_pages.main(["--check"]) == 1
    assert page.name in capsys.readouterr().err
    assert result_pages.main([]) == 0 and page.read_text(encoding="utf-8") == text


def test_the_verdicts_of_every_miniature_stand_beside_the_claims():
    text = (result_pages.RESULTS / "README.md").read_text(encoding="utf-8")
    names = [name for name in result_pages.recorded_comparisons() if name.startswith("mini/")]
    asked = [name for name in names if result_pages.load_comparison(name).file.pairs]
    assert re.findall(r"<!-- verdicts (\S+) -->", text) and set(re.findall(r"<!-- verdicts (\S+) -->", text)) == set(
        asked
    )


def test_the_readme_stays_short():
    assert len(result_pages.README.read_text(encoding="utf-8").splitlines()) <= 200
