"""The README's numbers are the committed records' numbers."""

import pytest

from vision_language import readme


def test_tables_in_the_readme_are_those_of_the_records():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.updated(text) == text


def test_a_changed_number_is_found(tmp_path, monkeypatch, capsys):
    text = readme.README.read_text(encoding="utf-8")
    block = text[text.index("<!-- table default -->") : text.index("<!-- end of table default -->")]
    digit = next(character for character in block.splitlines()[5] if character.isdigit())
    changed = text.replace(block, block.replace(digit, str((int(digit) + 1) % 10)))
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    assert readme.main(["--check"]) == 1
    assert "differs from the committed results" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


def test_unknown_names_and_arguments_are_refused(capsys):
    with pytest.raises(ValueError, match="unknown comparison 'nonsense'"):
        readme.updated("<!-- table nonsense -->\n<!-- end of table nonsense -->")
    with pytest.raises(ValueError, match="no table block"):
        readme.updated("nothing here")
    assert readme.main(["--wrong"]) == 2
    assert "--wrong" in capsys.readouterr().err
