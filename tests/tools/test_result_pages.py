"""README and docs/results say what the committed records say."""

import shutil

import pytest

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
    names = result_pages.MARK.findall(result_pages.README.read_text(encoding="utf-8"))
    assert "default" in names
    assert all((result_pages.RESULTS / f"{name}.png").is_file() for name in names)


@pytest.mark.parametrize("file", ["README.md", "results/default.md"])
def test_a_changed_number_is_found_and_mended(copy, capsys, file):
    page = copy / file
    text = page.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| LoRA-16") and "±" in line)
    page.write_text(text.replace(line, line.replace("±", "-")), encoding="utf-8")
    assert result_pages.main(["--check"]) == 1
    assert page.name in capsys.readouterr().err
    assert result_pages.main([]) == 0 and page.read_text(encoding="utf-8") == text


def test_the_readme_stays_short():
    assert len(result_pages.README.read_text(encoding="utf-8").splitlines()) <= 200
