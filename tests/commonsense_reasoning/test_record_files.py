"""Records in JSON and in Parquet: the same ones from both, and an error that says where a malformed one stands."""

import json

import pytest
from sample_records import make_record, write_parquet, write_tasks

from commonsense_reasoning.data import load_test_set, load_training
from commonsense_reasoning.record_files import read_records
from commonsense_reasoning.sources import find_source
from commonsense_reasoning.tasks import CHOICES, SOLUTIONS, TASKS, TRUE_FALSE, check_record, parse_question
from randlora_core.experiment.interface import MissingInputError

ROWS = [make_record(CHOICES, number) for number in range(7)]


def read(*paths):
    return read_records(paths, lambda record: record)


def write_json(path, rows, **layout):
    path.write_text(json.dumps(rows, **layout), encoding="utf-8")
    return path


@pytest.fixture
def json_folder(tmp_path):
    return write_tasks(tmp_path / "json")


def parquet_of(json_folder, place, rename=lambda name, split: f"{TASKS[name].folder}/{split}.parquet"):
    """The records of a folder once more, in Parquet files called as `rename` says."""
    for name, task in TASKS.items():
        for path in (json_folder / "dataset" / task.folder).glob("*.json"):
            write_parquet(place / rename(name, path.stem), json.loads(path.read_text()))
    return place


@pytest.mark.parametrize("layout", [{}, {"indent": 4}], ids=["one line", "indented"])
def test_json_and_parquet_hold_the_same_records(tmp_path, layout):
    expected = [check_record(row) for row in ROWS]
    wider = [{**row, "source": number} for number, row in enumerate(ROWS)]  # further columns are left out
    assert read(write_json(tmp_path / "a.json", wider, **layout)) == expected
    assert read(write_parquet(tmp_path / "a.parquet", wider)) == expected
    shards = [write_parquet(tmp_path / f"{part}.parquet", ROWS[part : part + 4]) for part in (0, 4)]
    assert read(*shards) == expected


def test_a_changed_parquet_file_is_read_anew(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    assert len(read(path)) == 7
    assert read(write_parquet(path, ROWS[3:5])) == [check_record(row) for row in ROWS[3:5]]


@pytest.mark.parametrize(("changed", "named"), [({"answer": None}, "answer=None"), ({"output": 7}, "output=7")])
def test_a_malformed_record_is_named_by_file_line_and_number(tmp_path, changed, named):
    rows = [*ROWS[:4], {**ROWS[4], **changed}, *ROWS[5:]]
    path = write_json(tmp_path / "a.json", rows, indent=2)
    line = path.read_text().splitlines().index('    "instruction": ' + json.dumps(ROWS[4]["instruction"]) + ",")
    with pytest.raises(ValueError, match=rf"^{path}, line {line}: record 5: {named}; accepted: a text$"):
        read(path)  # the line of the brace before it, the first one being 1
    with pytest.raises(ValueError, match=rf"^{path}, line 1: record 5: {named}"):
        read(write_json(path, rows))


@pytest.mark.parametrize(
    ("value", "named"), [(None, "answer=None; accepted: a text"), ("answer9", "does not give answer='answer9'")]
)
def test_a_malformed_row_of_parquet_is_named_by_file_and_number(tmp_path, value, named):
    good = write_parquet(tmp_path / "good.parquet", ROWS)
    bad = write_parquet(tmp_path / "bad.parquet", [*ROWS[:2], {**ROWS[2], "answer": value}])
    with pytest.raises(ValueError, match=rf"^{bad}: row 3: .*{named}$"):
        read(good, bad)


def test_true_and_false_as_truth_values_are_no_texts(tmp_path):
    rows = [{**make_record(TRUE_FALSE, number), "answer": bool(number % 2)} for number in range(3)]
    with pytest.raises(ValueError, match=r"a\.parquet: row 1: answer=False; accepted: a text"):
        read(write_parquet(tmp_path / "a.parquet", rows))


def test_what_a_caller_refuses_is_named_likewise(tmp_path):
    paths = write_json(tmp_path / "a.json", ROWS), write_parquet(tmp_path / "a.parquet", ROWS)
    for path, where in zip(paths, (r"a\.json, line 1: record 1", r"a\.parquet: row 1"), strict=True):
        with pytest.raises(ValueError, match=rf"{where}: instruction 'Please choose the correct answer"):
            read_records([path], lambda record: parse_question(record, SOLUTIONS))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[{", r"train\.json: it is not JSON \(.*line 1"),
        ("{}", r"train\.json: it holds a JSON dict, not a list"),
        ("[]", r"train\.json: it holds an empty list; accepted: a list of objects"),
        ('[\n\n"x"]', r"train\.json, line 3: record 1: 'x'"),
    ],
)
def test_a_malformed_json_file(json_folder, text, named):
    (json_folder / "dataset" / "boolq" / "train.json").write_text(text)
    with pytest.raises(ValueError, match=named):
        load_training(find_source("mixture", str(json_folder)), form="cloze", count=None, seed=0)


def test_a_malformed_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError) as raised:
        read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    fewer = [{key: row[key] for key in ("instruction", "answer")} for row in ROWS]
    with pytest.raises(
        ValueError, match=rf"^{path}: columns instruction, answer; accepted: instruction, input, output, answer$"
    ):
        read(write_parquet(path, fewer))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), path)
    with pytest.raises(ValueError, match=rf"^{path} cannot be copied .*no data"):
        read(path)


LAYOUTS = {
    "LLM-Adapters' folders": lambda name, split: f"dataset/{TASKS[name].folder}/{split}.parquet",
    "a configuration per task": lambda name, split: f"{name}/{split}-00000-of-00001.parquet",
    "a repository per task": lambda name, split: f"{name}/data/{split}-00000-of-00001.parquet",
}


@pytest.mark.parametrize("rename", LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_of_parquet_files_gives_what_the_json_files_give(json_folder, tmp_path, rename):
    """WinoGrande's train_l.json has no name of its own in Parquet, so that the tests' is called train.json."""
    folder = parquet_of(json_folder, tmp_path / "parquet", rename)
    found, expected = (find_source("mixture", str(place)) for place in (folder, json_folder))
    for form in ("paper", "cloze"):
        settings = {"form": form, "count": 20, "seed": 3}
        assert load_training(found, **settings) == load_training(expected, **settings)
    for name in TASKS:
        assert load_test_set(found, name, 4) == load_test_set(expected, name, 4)
    before = found.identify()
    assert before == find_source("mixture", str(folder)).identify() != find_source("boolq", str(folder)).identify()
    write_parquet(folder / rename("piqa", "test"), [make_record(SOLUTIONS, 77)])
    assert found.identify() != before


@pytest.mark.parametrize(
    "names", [("commonsense_15k.parquet",), tuple(f"commonsense_15k/train-0000{n}-of-00002.parquet" for n in (0, 1))]
)
def test_a_training_set_of_the_paper_in_parquet(json_folder, names):
    rows = [make_record(CHOICES, number) for number in range(600)]
    part = len(rows) // len(names)
    for number, name in enumerate(names):
        write_parquet(json_folder / name, rows[number * part : (number + 1) * part])
    source = find_source("commonsense_15k", str(json_folder))
    with pytest.raises(ValueError, match=rf"{names[-1]} has 600 records; accepted: about 15,000"):
        load_training(source, form="paper", count=None, seed=0)
    assert len(source.identify()) == 64
    if len(names) > 1:
        (json_folder / names[0]).unlink()
        with pytest.raises(ValueError, match="1 of the 2 shards of 'train' are there"):
            source.identify()


def test_json_comes_before_parquet_and_what_is_missing_is_named(json_folder):
    write_parquet(json_folder / "dataset" / "boolq" / "test.parquet", [make_record(TRUE_FALSE, 5)])
    source = find_source("boolq", str(json_folder))
    assert len(load_test_set(source, "boolq", None).records) == 6
    (json_folder / "dataset" / "boolq" / "test.json").unlink()
    assert len(load_test_set(source, "boolq", None).records) == 1
    (json_folder / "dataset" / "ARC-Easy" / "test.json").unlink()
    named = r"no file ARC-Easy/test\.json, arc_easy/test\.json, ARC-Easy/test\*\.parquet, arc_easy/test\*\.parquet$"
    with pytest.raises(MissingInputError, match=named):
        source.identify()


def test_a_hub_repository_of_parquet_files(json_folder, tmp_path, monkeypatch):
    from commonsense_reasoning import data_folder

    folder = parquet_of(json_folder, tmp_path / "parquet", LAYOUTS["a configuration per task"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **given: str(folder))
    monkeypatch.chdir(tmp_path)
    data_folder._downloaded.cache_clear()
    try:
        found, expected = find_source("boolq", "owner/tasks"), find_source("boolq", str(json_folder))
        settings = {"form": "cloze", "count": None, "seed": 0}
        assert load_training(found, **settings) == load_training(expected, **settings)
        assert load_test_set(found, "hellaswag", None) == load_test_set(expected, "hellaswag", None)
    finally:
        data_folder._downloaded.cache_clear()
