import json

import pytest
from sample_records import REAL, make_record, needs_real_files, write_tasks

from commonsense_reasoning import data_folder
from commonsense_reasoning import sources as module
from commonsense_reasoning.data import load_test_set, load_training
from commonsense_reasoning.prompts import cloze_example, paper_example
from commonsense_reasoning.sources import find_source
from commonsense_reasoning.tasks import CHOICES, SOLUTIONS, TASKS, TRUE_FALSE, check_record, parse_question
from randlora_core.experiment.interface import MissingInputError


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path)


def training(folder, dataset="mixture", form="cloze", count=None, seed=1):
    return load_training(find_source(dataset, str(folder)), form=form, count=count, seed=seed)


def items_of(folder, task, count=None):
    return load_test_set(find_source("mixture", str(folder)), task, count)


def identify(dataset, folder):
    return find_source(dataset, None if folder is None else str(folder)).identify()


def examples_of(layout, numbers, form):
    records = [check_record(make_record(layout, number)) for number in numbers]
    return [paper_example(record) if form == "paper" else cloze_example(parse_question(record)) for record in records]


@pytest.mark.parametrize("form", ["paper", "cloze"])
def test_training_and_validation_are_all_examples_once(folder, form):
    found = training(folder, form=form, dataset="social_i_qa")
    assert len(found.validation) == 2 and len(found.train) == found.num_available == 10
    assert sorted((*found.train, *found.validation), key=str) == sorted(
        examples_of(CHOICES, range(2500, 2512), form), key=str
    )


def test_smaller_choices_are_part_of_larger_ones_and_the_seed_decides(folder):
    whole = training(folder).train
    assert len(whole) == 72 - 14
    for count in (1, 6, 20, 58):
        assert training(folder, count=count).train == whole[:count]
    assert training(folder, seed=2).train != whole and set(training(folder, seed=2).train) == set(whole)
    assert training(folder, seed=2).validation == training(folder, seed=1).validation


def test_the_tasks_of_a_mixture_take_turns(folder):
    """Layouts tell the tasks apart by their text; social_i_qa, ARC and OpenBookQA share one."""
    found = training(folder, count=12)
    kinds = [example.context[0].split(" ")[0] + example.answer for example in found.train]
    assert sum(text.startswith("Question:") and text.endswith((" yes", " no")) for text in kinds) == 2
    assert sum(" broke " in example.answer for example in found.train) == 2
    remark = "(boolq 2, social_i_qa 2, winogrande 2, arc_easy 2, arc_challenge 2, openbookqa 2), no training set of"
    assert remark in found.remarks[0] and found.remarks[0].endswith("not trained on: piqa, hellaswag.")


def test_no_validation_example_is_trained_on_even_if_the_file_has_it_twice(tmp_path):
    records = [make_record(CHOICES, number) for number in range(10)]
    write_tasks(tmp_path)
    (tmp_path / "dataset" / "social_i_qa" / "train.json").write_text(json.dumps([*records, *records]))
    found = training(tmp_path, dataset="social_i_qa")
    assert found.validation and not set(found.train) & set(found.validation)
    assert set(found.train) | set(found.validation) == set(examples_of(CHOICES, range(10), "cloze"))


def test_at_most_120_examples_are_held_out(tmp_path):
    write_tasks(tmp_path, train=120)
    assert len(training(tmp_path).validation) == 120


def test_a_set_too_small_to_hold_examples_out(tmp_path):
    write_tasks(tmp_path, train=4)
    with pytest.raises(ValueError, match="boolq has too few examples to hold some out; accepted: at least 5"):
        training(tmp_path, dataset="boolq")
    write_tasks(tmp_path, train=5)
    assert len(training(tmp_path, dataset="boolq").validation) == 1


def test_the_papers_sets_have_the_size_of_their_name(folder, monkeypatch):
    path = folder / "commonsense_15k.json"
    records = [make_record(CHOICES, number) for number in range(600)]
    path.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"commonsense_15k\.json has 600 records; accepted: about 15,000"):
        training(folder, dataset="commonsense_15k")
    monkeypatch.setitem(module.PUBLISHED, "commonsense_15k", 1)
    found = training(folder, dataset="commonsense_15k", form="paper", count=100)
    assert (len(found.train), len(found.validation), found.num_available) == (100, 120, 480) and found.remarks == ()
    (folder / "ft-training_set").mkdir()
    path.rename(folder / "ft-training_set" / path.name)
    assert training(folder, dataset="commonsense_15k", form="paper", count=100) == found


def test_what_is_unknown_or_not_here(folder):
    with pytest.raises(ValueError, match="unknown training set dataset='mix'; accepted: commonsense_15k, "):
        identify("mix", folder)
    with pytest.raises(MissingInputError, match=r"'commonsense_170k' is not in paths.data=.*commonsense_170k\.json"):
        identify("commonsense_170k", folder)
    with pytest.raises(MissingInputError, match=r"'piqa' is not in .* no file piqa/train\.json, piqa/train_l\.json"):
        training(folder, dataset="piqa")
    with pytest.raises(MissingInputError, match=r"paths\.data=None"):
        identify("mixture", None)
    (folder / "dataset" / "ARC-Easy" / "test.json").unlink()
    with pytest.raises(MissingInputError, match=r"test set of arc_easy .* no file ARC-Easy/test\.json"):
        identify("mixture", folder)
    with pytest.raises(ValueError, match=r"examples=59; accepted: 1 to 58"):
        training(folder, count=59)


def test_the_fingerprint_changes_with_any_file_and_with_the_name(folder):
    def found(dataset="mixture"):
        return identify(dataset, folder)

    before = found()
    assert found() == before and found("boolq") != before != found("social_i_qa")
    for path in ("piqa/test.json", "boolq/train.json"):
        changed = folder / "dataset" / path
        layout = SOLUTIONS if path.startswith("piqa") else TRUE_FALSE
        changed.write_text(json.dumps([make_record(layout, 77)]))
        assert found() != before
        before = found()


def test_the_fingerprint_does_not_read_a_file_again(folder, monkeypatch):
    before = identify("mixture", folder)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert identify("mixture", folder) == before


def test_a_malformed_record_of_training_and_of_test(folder):
    for split, number in (("train", 12), ("test", 6)):
        path = folder / "dataset" / "boolq" / f"{split}.json"
        records = json.loads(path.read_text())
        records[-1]["instruction"] = records[-1]["instruction"].replace("true/false", "true/fal")
        path.write_text(json.dumps(records))
        with pytest.raises(ValueError, match=rf"{split}\.json, line 1: record {number}: answer format 'true/fal'"):
            training(folder) if split == "train" else items_of(folder, "boolq")


@pytest.mark.parametrize("name", TASKS)
def test_a_test_set_and_its_fixed_choices(tmp_path, name):
    write_tasks(tmp_path, test=40)
    whole = items_of(tmp_path, name)
    assert whole.name == whole.task == name and len(whole.records) == len(whole.questions) == 40
    assert f"{name} has 40 items here" in whole.remarks[0]
    some, more = (items_of(tmp_path, name, count) for count in (10, 25))
    assert some.name == f"{name}_10" and f"{name}: a fixed choice of 10 of 40 items." in some.remarks
    assert some == items_of(tmp_path, name, 10)
    assert set(some.records) < set(more.records) < set(whole.records)
    assert [whole.records.index(record) for record in some.records] != list(range(10))
    assert some.questions == tuple(parse_question(record) for record in some.records)
    assert items_of(tmp_path, name, 40).name == name
    with pytest.raises(ValueError, match="test_items=41; accepted: 1 to 40"):
        items_of(tmp_path, name, 41)


@needs_real_files
def test_the_published_files():
    found = training(REAL, count=800)
    assert len(found.validation) == 120 and found.num_available == 61_277 and len(found.train) == 800
    assert items_of(REAL, "hellaswag").remarks == ()


@pytest.fixture
def hub_not_asked():
    """Nothing that an earlier test got from a hub."""
    data_folder._downloaded.cache_clear()
    yield
    data_folder._downloaded.cache_clear()


@pytest.mark.usefixtures("hub_not_asked")
def test_a_hub_repository_is_a_folder_that_is_downloaded(folder, monkeypatch, tmp_path):
    asked = []

    def download(repository, **given):
        asked.append((repository, given))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    few = training("owner/tasks", form="paper", count=3)
    assert few == training(folder, form="paper", count=3) and len(few.train) == 3
    assert items_of("owner/tasks", "boolq").questions == items_of(folder, "boolq").questions
    assert identify("mixture", "owner/tasks") == identify("mixture", folder)
    assert asked == [
        ("owner/tasks", {"repo_type": "dataset", "allow_patterns": ["*.json", "*.parquet"]})
    ]  # once: one revision
    asked.clear()
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "tasks").symlink_to(folder)
    assert identify("mixture", "owner/tasks") and not asked  # a folder of this name comes first


@pytest.mark.parametrize("place", ["/nowhere/tasks", "./tasks", "tasks", "a/b/c", "~/nowhere_at_all"])
def test_what_cannot_be_a_repository_is_not_asked_of_the_hub(monkeypatch, place):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **more: pytest.fail("asked the hub"))
    with pytest.raises(MissingInputError, match=r"'mixture' is not in paths\.data="):
        identify("mixture", place)


@pytest.mark.usefixtures("hub_not_asked")
def test_a_repository_that_the_hub_does_not_give_is_missing_data(monkeypatch):
    def refuse(*given, **more):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        MissingInputError, match=r"^paths.data=owner/tasks is no folder here, .* \(no route to the hub\)$"
    ):
        identify("mixture", "owner/tasks")
