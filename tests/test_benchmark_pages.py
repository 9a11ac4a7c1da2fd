"""The tables of time and memory in the pages are those of the committed results."""

import csv
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


def test_bases_in_groups_get_columns_where_they_were_measured(tmp_path):
    path = tmp_path / "quick.csv"
    heading, first, *rest = (pages.RESULTS / "quick.csv").read_text(encoding="utf-8").splitlines()
    table = list(csv.DictReader([heading, first, *rest]))
    assert "blocks" not in pages.table(pages.RESULTS / "quick.csv") or "randlora_blocks" in first + "".join(rest)
    ours = next(row for row in table if row["method"] == "randlora")
    made = {"method": "randlora_blocks", "to_lora": "1.23", "to_full": "0.5", "blocks_limit": "1.15"}
    made |= {"to_dense": "0.8", "to_dense_q1": "0.7", "to_dense_q3": "0.9", "peak_bytes": "1"}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys([*table[0], *made]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*(row for row in table if row["method"] != "randlora_blocks"), ours | made])
    heading, _, first, second, *_ = pages.table(path).splitlines()
    assert [cell.strip() for cell in heading.split("|")[-5:-1]] == [
        "blocks / LoRA",
        "/ dense",
        "/ full",
        "memory / LoRA",
    ]
    assert [cell.strip() for cell in first.split("|")[-5:-1]] == ["1.23 (> 1.15)", "0.80", "0.50", "0.00"]
    assert [cell.strip() for cell in second.split("|")[-5:-1]] == ["-"] * 4


def test_a_grid_is_judged_by_what_the_model_picks_now(tmp_path, monkeypatch):
    monkeypatch.setattr(pages.grid, "prediction", lambda point, device_type: "weight")
    heading = "out_features,in_features,tokens,half,train,groups,"
    heading += "".join(f"{way}_ms,{way}_ms_q1,{way}_ms_q3," for way in ("activation", "weight", "auto")) + "hardware\n"
    spread = "1,1.1"
    float32 = f"8,8,4,False,True,1,1,{spread},1.5,{spread},1,{spread},a GPU\n"
    bfloat16 = f"8,8,4,True,True,1,2,{spread},1,{spread},1,{spread},a GPU\n"
    path = tmp_path / "grid_cuda.csv"
    path.write_text(heading + float32 + bfloat16)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in pages.table(path).splitlines()]
    assert lines[2:5] == [
        ["all", "2", "50.0%", "1.250", "1.50"],
        ["float32", "1", "0.0%", "1.500", "1.50"],
        ["bfloat16", "1", "100.0%", "1.000", "1.00"],
    ]
    path.write_text(heading + float32)
    assert "bfloat16" not in pages.table(path)


def test_products_by_triton_stand_beside_the_steps_of_their_layers(tmp_path):
    def row(kind, sides, number_format, **times):
        start = f"{kind},{sides},6,640,{number_format}"
        return "".join(f"{start},{method},{ms},a GPU\n" for method, ms in times.items())

    heading = "kind,out_features,in_features,rank,tokens,format,method,ms,hardware\n"
    methods = {"randlora": 1.5, "randlora_blocks": 2.5, "randlora_blocks by Triton": 3.5, "lora": 4.5, "full": 5.5}
    products = row("all five", "3072,768", "float32", torch=4, triton=9) + row(
        "all five", "3072,768", "bfloat16", torch=8, triton=2
    )
    steps = row("step", "768,3072", "bfloat16 autocast", **methods)
    path = tmp_path / "blocks_gpu.csv"
    path.write_text(heading + products + steps)
    _, _, line, _, note = pages.table(path).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["3072 -> 768", "640", "bfloat16 autocast"]
    assert cells[3:] == ["1.50", "2.50", "3.50", "4.50", "5.50", "8.00", "2.00", "0.25"]
    assert note == "ms, medians; a GPU."
    path.write_text(heading + row("all five", "3072,768", "float32", torch=4, triton=9) + steps)
    with pytest.raises(ValueError, match=r"blocks_gpu\.csv: layer 3072 -> 768, 640 tokens, bfloat16 autocast: no "):
        pages.table(path)


def test_unknown_files_and_pages_without_tables_are_refused():
    with pytest.raises(FileNotFoundError, match=r"nonsense\.csv"):
        pages.updated("<!-- measured nonsense -->\n<!-- end of measured nonsense -->")
    with pytest.raises(ValueError, match="no measured block"):
        pages.updated("nothing")


QUICK_DAMAGES = {
    "no file": (lambda path: path.unlink(), "No such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "empty": (lambda path: path.write_text(""), "it is empty"),
    "the heading alone": (lambda path: path.write_text(path.read_text().split("\n")[0] + "\n"), "it has no rows"),
    "cut in a line": (lambda path: path.write_text(path.read_text()[:-40]), "its last line is cut"),
    "cut in a line that ends": (lambda path: path.write_text(path.read_text()[:-400] + "\n"), "more or fewer values"),
    "cut between lines": (
        lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:2])),
        "has no row of randlora",
    ),
    "a word for a number": (
        lambda path: replace(path, ",float32,3200,", ",float32,many,"),
        "'tokens' must be a number",
    ),
    "infinite": (lambda path: replace(path, ",float32,3200,", ",float32,inf,"), "'tokens' must be a number, got 'inf'"),
    "no value": (lambda path: replace(path, ",float32,3200,", ",float32,,"), "line 2: there is no 'tokens'"),
    "another heading": (lambda path: replace(path, "peak_bytes", "peak"), "it has no column 'peak_bytes'"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\n"), "it is no text"),
    "zeros": (lambda path: path.write_bytes(path.read_bytes()[:2000] + bytes(50) + b"\n"), "line "),
}
TABLE10_DAMAGES = {
    "no method": (
        lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1])),
        "Llama-3-8B has no row of peft_randlora",
    ),
    "a word for a number": (
        lambda path: replace(path, ",full,100.0,", ",full,all,"),
        "'time_percent' must be a number",
    ),
    "cut": (lambda path: path.write_text(path.read_text()[:-1]), "its last line is cut"),
}


def replace(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("option", [[], ["--check"]])
@pytest.mark.parametrize(
    ("name", "damage"), [("quick", key) for key in QUICK_DAMAGES] + [("table10", key) for key in TABLE10_DAMAGES]
)
def test_damaged_files_get_one_line_and_change_no_page(name, damage, option, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"<!-- measured {name} -->\nas before\n<!-- end of measured {name} -->\n")
    shutil.copy(pages.RESULTS / f"{name}.csv", tmp_path)
    monkeypatch.setattr(pages, "PAGES", (page,))
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    assert pages.main(["--check"]) == 1  # the file as it is can be read
    capsys.readouterr()
    harm, message = (QUICK_DAMAGES if name == "quick" else TABLE10_DAMAGES)[damage]
    harm(tmp_path / f"{name}.csv")
    assert pages.main(option) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / name}.csv") and message in line
    assert "as before" in page.read_text()
