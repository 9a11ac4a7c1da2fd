"""The generated tasks: their shapes, their answers, and that no fact is both trained on and asked for in the test."""

import re
from collections import Counter

import pytest

from commonsense_reasoning.data import load_test_set, load_training
from commonsense_reasoning.generated import facts as facts_module
from commonsense_reasoning.generated.__main__ import main
from commonsense_reasoning.generated.facts import FACTS, SPLITS, read_facts, split_facts
from commonsense_reasoning.generated.questions import (
    GENERATED_TASKS,
    generate_records,
    identify_questions,
    write_record,
)
from commonsense_reasoning.record_files import read_records
from commonsense_reasoning.sources import find_source
from commonsense_reasoning.tasks import ANSWER_OPENING, TASKS, check_record, parse_question


def questions(task, split):
    return [parse_question(record, GENERATED_TASKS[task].layout) for record in generate_records(task, split)]


def group_of(task, fact):
    """The group of a fact, looked up in all facts; of a fact in parts, by its last part."""
    (group,) = (name for name, members in read_facts(task).items() if fact in (m.split(" = ")[-1] for m in members))
    return group


def right_and_wrong(question):
    options = list(question.options)
    return options.pop(question.correct), options


def test_the_shapes_are_those_of_the_real_tasks_and_the_names_are_not():
    assert [task.layout for task in GENERATED_TASKS.values()] == [task.layout for task in TASKS.values()]
    assert not set(GENERATED_TASKS) & set(TASKS) and set(GENERATED_TASKS) == set(FACTS)
    assert {task.paper_name for task in GENERATED_TASKS.values()} == {None}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", GENERATED_TASKS)
def test_records_are_in_the_format_of_the_real_ones(task, split):
    records = generate_records(task, split)
    assert records == generate_records(task, split)  # always the same ones
    for record, question in zip(records, questions(task, split), strict=True):
        assert check_record(vars(record)) == record == write_record(question)
        assert record.output == f"{ANSWER_OPENING} {record.answer}" and record.input == ""
    answers = Counter(record.answer for record in records)
    assert len(answers) == max(len(question.options) for question in questions(task, split))
    assert min(answers.values()) > 0.1 * len(records)  # no place of the right answer is rare


@pytest.mark.parametrize("task", GENERATED_TASKS)
def test_no_fact_is_both_trained_on_and_asked_for_in_the_test(task):
    train, test = split_facts(task, "train"), split_facts(task, "test")
    assert {group: sorted((*train[group], *test[group])) for group in test} == {
        group: sorted(members) for group, members in read_facts(task).items()
    }
    trained = "\n".join(record.instruction for record in generate_records(task, "train"))
    for group, members in test.items():
        for fact in members:
            parts = [group.partition(", ")[2].format(fact)] if task == "properties" else fact.split(" = ")
            assert not any(re.search(rf"\b{re.escape(part)}\b(?! [a-z])", trained) for part in parts), fact


@pytest.mark.parametrize("task", GENERATED_TASKS)
def test_every_fact_is_asked_for_once_in_the_test(task):
    found = questions(task, "test")
    assert len(found) == len(set(found)) == sum(map(len, split_facts(task, "test").values()))
    assert len(found) == GENERATED_TASKS[task].test_size


@pytest.mark.parametrize("split", SPLITS)
def test_the_right_answer_is_right_and_the_others_are_not(split):
    for question in questions("properties", split):
        answer = question.options[question.correct]
        asked = [
            (group.partition(", ")[2].format(thing), group)
            for group, ms in read_facts("properties").items()
            for thing in ms
        ]
        assert [group.partition(", ")[0] for text, group in asked if f"{text}?" == question.text] == [answer]
    for question in questions("kinds", split):
        right, wrong = right_and_wrong(question)
        assert question.text == f"Which of these is {group_of('kinds', right)}?"
        assert group_of("kinds", right) not in {group_of("kinds", one) for one in wrong}
    for task, asked in (("materials", r"material of (.*)\?"), ("places", r"likely to find (.*)$")):
        for question in questions(task, split):
            right, wrong = right_and_wrong(question)
            assert group_of(task, re.search(asked, question.text)[1]) == right and right not in wrong
    for question in questions("uses", split):
        tool, other = (
            question.options[place].removeprefix("Use ").removesuffix(".")
            for place in (question.correct, 1 - question.correct)
        )
        goal = question.text.removeprefix("How do you ").removesuffix("?")
        assert f"{goal} = {tool}" in read_facts("uses")[group_of("uses", tool)]
        assert group_of("uses", other) != group_of("uses", tool)
    for question in questions("feelings", split):
        person, _, rest = question.text.partition(" ")
        event = rest.removesuffix(f" How does {person} feel?").removesuffix(".")
        sort, feeling = group_of("feelings", event).split(", ")
        right, wrong = right_and_wrong(question)
        sorts = {name.split(", ")[1]: name.split(", ")[0] for name in read_facts("feelings")}
        assert right == feeling and sorted([sort, *(sorts[one] for one in wrong)]) == [
            "bodily",
            "pleasant",
            "unpleasant",
        ]
    for question in questions("next_steps", split):
        title = question.text.partition(":")[0]
        (steps,) = (
            m.split(" = ") for ms in read_facts("next_steps").values() for m in ms if m.startswith(f"{title} =")
        )
        assert question.options[question.correct] == f"{steps[-1]}."


@pytest.mark.parametrize("split", SPLITS)
def test_a_thing_never_fits_into_the_container_of_its_question(split):
    sizes = {fact: group.split() for group, members in read_facts("sizes").items() for fact in members}
    for question in questions("sizes", split):
        (what, size), (other, other_size) = sorted((sizes[one] for one in question.options), reverse=True)
        assert (what, other) == ("thing", "container") and size > other_size
        too_big = sizes[question.options[question.correct]][0] == "thing"
        assert question.text.endswith("too big." if too_big else "too small.")


def test_they_are_read_like_files():
    source = find_source("generated", None)
    found = load_training(source, form="cloze", count=160, seed=1)
    assert len(found.train) == 160 and len(found.validation) == 120 and not set(found.train) & set(found.validation)
    assert "properties 20, uses 20, feelings 20" in found.remarks[0] and "a demonstration" in found.remarks[0]
    paper = load_training(source, form="paper", count=8, seed=1)
    assert all(example.answer.startswith(ANSWER_OPENING) for example in paper.train)
    test = load_test_set(source, "kinds", 5)
    assert (test.name, len(test.questions), test.remarks) == (
        "kinds_5",
        5,
        ("kinds: a fixed choice of 5 of 48 items.",),
    )
    with pytest.raises(ValueError, match="test_items=49; accepted: 1 to 48, as many as kinds has, or null for all"):
        load_test_set(source, "kinds", 49)


def test_the_fingerprint_changes_with_a_fact(monkeypatch):
    before = identify_questions()
    assert before == identify_questions()
    monkeypatch.setitem(facts_module.FACTS, "kinds", FACTS["kinds"].replace("sparrow", "jackdaw"))
    assert identify_questions() != before


def test_the_command_writes_files_that_are_read_like_the_real_ones(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    for name, task in GENERATED_TASKS.items():
        for split in SPLITS:
            path = tmp_path / "dataset" / task.folder / f"{split}.json"
            assert read_records([path], lambda record: record) == generate_records(name, split)
    assert len(capsys.readouterr().out.splitlines()) == 16
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: folder {tmp_path / 'file'}: ")
