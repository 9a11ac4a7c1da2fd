"""The tables of time and memory in the pages are those of the committed results."""

import shutil

import pytest

from randlora_core.benchmarking import pages
from randlora_core.benchmarking.report import read_cases


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_files(page):
    text = page.read_text(encoding="utf-8")
    assert pages.updated(text) == text


def test_a_changed_number_is_found_and_mended(tmp_path, monkeypatch, capsys):
    text = pages.PAGES[0].read_text(encoding="utf-8")
    (rows, *_) = read_cases(pages.RESULTS / "quick.csv")
    ratio = f"{float(rows['randlora']['to_lora']):.2f}"
    assert ratio in text
    copy = tmp_path / "README.md"
    copy.write_text(text.replace(ratio, "9.99"), encoding="utf-8")
    monkeypatch.setattr(pages, "PAGES", (copy,))
    assert pages.main(["--check"]) == 1
    assert "README.md differs from the committed results" in capsys.readouterr().err
    assert pages.main([]) == 0
    assert copy.read_text(encoding="utf-8") == text
    assert pages.main(["--check"]) == 0


def test_a_missed_goal_is_marked_where_it_was_missed(tmp_path):
    path = tmp_path / "quick.csv"
    shutil.copy(pages.RESULTS / "quick.csv", path)
    (rows, *_) = read_cases(path)
    before, after = rows["randlora"]["to_peft"], "7.7777"
    path.write_text(path.read_text(encoding="utf-8").replace(f",{before},", f",{after},"), encoding="utf-8")
    first = pages.table(path).splitlines()[2]
    assert "7.78 (> 0.70)" in first
    assert "Goals met:" in pages.table(path)


def test_unknown_files_and_pages_without_tables_are_refused():
    with pytest.raises(FileNotFoundError, match=r"nonsense\.csv"):
        pages.updated("<!-- measured nonsense -->\n<!-- end of measured nonsense -->")
    with pytest.raises(ValueError, match="no measured block"):
        pages.updated("nothing")
