import json
from pathlib import Path

import pytest
from sample_records import REAL, make_record, needs_real_files

from commonsense_reasoning.tasks import (
    CHOICES,
    ENDINGS,
    GAP,
    LAYOUTS,
    SOLUTIONS,
    TASKS,
    TRUE_FALSE,
    check_record,
    parse_question,
)

GOOD = make_record(CHOICES, 4)


def record(layout, text, answer, **changed):
    fields = {"instruction": layout.opening + text, "input": "", "output": f"the correct answer is {answer}"}
    return check_record({**fields, "answer": answer, **changed})


def test_the_eight_tasks_of_the_paper():
    sizes = {"boolq": 3270, "piqa": 1838, "social_i_qa": 1954, "hellaswag": 10042, "winogrande": 1267}
    sizes |= {"arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500}
    assert {name: task.test_size for name, task in TASKS.items()} == sizes
    assert [task.paper_name for task in TASKS.values()] == (
        ["BoolQ", "PIQA", "SIQA", "HellaSwag", "WinoGrande", "ARC-e", "ARC-c", "OBQA"]
    )


@pytest.mark.parametrize(
    ("layout", "text", "answer", "expected"),
    [
        (TRUE_FALSE, "is ice cold?\n\nAnswer format: true/false", "false", ("is ice cold?", ("yes", "no"), 1)),
        (
            SOLUTIONS,
            "dresser\n\nSolution1: use a pin \n\nSolution2: use: wood\n\nAnswer format: solution1/solution2",
            "solution2",
            ("dresser", ("use a pin", "use: wood"), 1),
        ),
        (
            CHOICES,
            "Why?\nSay it.\n\nAnswer1: a b Answer2: Answer1 no Answer3: c.\n\nAnswer format: answer1/answer2/answer3",
            "answer3",
            ("Why?\nSay it.", ("a b", "Answer1 no", "c."), 2),
        ),
        (
            ENDINGS,
            "Roof: He sits. he\n\nEnding1: a. Ending2: b. Ending3: c. Ending4: d.\n\n"
            "Answer format: ending1/ending2/ending3/ending4",
            "ending1",
            ("Roof: He sits. he", ("a.", "b.", "c.", "d."), 0),
        ),
        (
            GAP,
            "Ann met Bea so _ won.\n\nOption1: Ann Option2: Bea Answer format: option1/option2",
            "option2",
            ("Ann met Bea so _ won.", ("Ann", "Bea"), 1),
        ),
    ],
    ids=lambda value: value.labels[0] if hasattr(value, "labels") else "",
)
def test_a_question_of_every_layout(layout, text, answer, expected):
    found = parse_question(record(layout, text, answer, input=" Ice is cold. "))
    assert (found.text, found.options, found.correct) == expected
    assert found.layout is layout and found.passage == "Ice is cold."


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.labels[0])
def test_the_answer_is_its_option(layout, number):
    fields = make_record(layout, number)
    found = parse_question(check_record(fields))
    assert found.layout is layout and layout.labels[found.correct] == fields["answer"]
    if not layout.options:
        said = f"{fields['answer'].capitalize()}: {found.options[found.correct]}"
        assert said in fields["instruction"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"answer": None}, "answer=None"),
        ({"output": 7}, "output=7"),
        ({"instruction": " "}, "empty instruction"),
        ({"answer": ""}, "empty instruction or answer"),
        ({"output": "the correct answer is answer1", "answer": "answer2"}, "does not give answer='answer2'"),
    ],
)
def test_a_malformed_record(changed, named):
    with pytest.raises(ValueError, match=named):
        check_record({**GOOD, **changed})


def test_a_record_that_is_no_object_or_lacks_a_field():
    with pytest.raises(ValueError, match=r"^'text'; accepted: an object"):
        check_record("text")
    with pytest.raises(ValueError, match=r"^input=None; accepted: a text"):
        check_record({key: value for key, value in GOOD.items() if key != "input"})


@pytest.mark.parametrize(
    ("layout", "text", "answer", "named"),
    [
        (CHOICES, "Why?\n\nAnswer1: a Answer3: b\n\nAnswer format: answer1/answer2", "answer1", "behind Answer2:"),
        (CHOICES, "Why?\n\nAnswer1: a Answer2: \n\nAnswer format: answer1/answer2", "answer1", "behind Answer2:"),
        (CHOICES, "\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2", "answer1", "without text"),
        (CHOICES, "Why?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2", "answer3", "answer='answer3'"),
        (CHOICES, "Why?\n\nAnswer1: a\n\nAnswer format: answer1", "answer1", "answer format 'answer1'"),
        (CHOICES, "Why?\n\nAnswer1: a Answer2: b", "answer1", "answer format"),
        (GAP, "So he won.\n\nOption1: a Option2: b Answer format: option1/option2", "option1", "has 0 gaps"),
        (GAP, "_ saw _.\n\nOption1: a Option2: b Answer format: option1/option2", "option1", "has 2 gaps"),
    ],
)
def test_an_instruction_that_cannot_be_taken_apart(layout, text, answer, named):
    with pytest.raises(ValueError, match=named):
        parse_question(record(layout, text, answer))


def test_another_layout_than_the_task_has_is_refused():
    with pytest.raises(ValueError, match=r"accepted: 'Please choose the correct ending"):
        parse_question(check_record(GOOD), ENDINGS)
    with pytest.raises(ValueError, match="accepted beginnings: "):
        parse_question(check_record({**GOOD, "instruction": "Please tell: why?"}))


@pytest.mark.parametrize(
    ("layout", "text", "answer"),
    [
        (TRUE_FALSE, "the correct answer is true", "true"),
        (TRUE_FALSE, "that is untrue", "true"),
        (TRUE_FALSE, "True", None),
        (TRUE_FALSE, "false, not true", "false"),
        (CHOICES, "the correct answer is answer12", "answer1"),
        (CHOICES, "answer6 or answer5", "answer5"),
        (CHOICES, "I do not know", None),
        (CHOICES, "", None),
        (SOLUTIONS, "solution3, solution2, solution1", "solution2"),
        (ENDINGS, "ending5 ending4", "ending4"),
        (GAP, "option2option1", "option2"),
    ],
)
def test_the_first_match_is_the_answer(layout, text, answer):
    """Also inside another word and where there are two, as the published protocol has it."""
    assert layout.extract_answer(text) == answer


@needs_real_files
@pytest.mark.parametrize("name", TASKS)
def test_every_published_record_is_taken_apart(name):
    task = TASKS[name]
    paths = sorted(Path(REAL, "dataset", task.folder).glob("*.json"))
    assert "test" in [path.stem for path in paths]
    for path in paths:
        records = [check_record(fields) for fields in json.loads(path.read_text())]
        questions = [parse_question(record, task.layout) for record in records]
        assert len(questions) == task.test_size or path.stem != "test"
        for found, question in zip(records, questions, strict=True):
            assert task.layout.extract_answer(found.output) == found.answer == task.layout.labels[question.correct]
            assert question.text in found.instruction and all(question.options)
            assert task.layout.options or all(option in found.instruction for option in question.options)
