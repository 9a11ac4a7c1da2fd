"""The eight commonsense tasks in the JSON format of LLM-Adapters: their table, their records and their answers.

A record has the fields instruction, input, output and answer, all texts. The instruction holds the question and its
options as prose, in one of five layouts; the output is "the correct answer is ..." and the answer its last word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

ANSWER_OPENING = "the correct answer is"
"""How every output begins; the answer's label follows."""


@dataclass(frozen=True)
class Layout:
    """How an instruction is written, and how its answers are called.

    Attributes:
        opening: The text before the question.
        labels: The labels that answers may have; an instruction with fewer options has the first of them.
        cloze: How the question is put where the answers' own text is scored, see `commonsense_reasoning.prompts`:
            "question" asks it, "sentence" lets the option continue it, "gap" puts the option into the gap in it.
        options: The texts of the options where the instruction does not list them.
        min_options: The fewest options of a record.
    """

    opening: str
    labels: tuple[str, ...]
    cloze: Literal["question", "sentence", "gap"]
    options: tuple[str, ...] = ()
    min_options: int = 2

    @cached_property
    def answer_pattern(self) -> re.Pattern[str]:
        """LLM-Adapters' regular expression, whose first match in a generated text is the answer."""
        return re.compile("|".join(self.labels))

    def extract_answer(self, text: str) -> str | None:
        """The label that a generated text gives as its answer.

        As in the published protocol it is the first match, also inside a longer word: "untrue" counts as "true".

        Returns:
            The label, or None where the text has none.
        """
        found = self.answer_pattern.search(text)
        return found.group() if found else None


ANSWERS = tuple(f"answer{number}" for number in range(1, 6))

TRUE_FALSE = Layout(
    "Please answer the following question with true or false, question: ",
    labels=("true", "false"),
    cloze="question",
    options=("yes", "no"),
)
SOLUTIONS = Layout(
    "Please choose the correct solution to the question: ", labels=("solution1", "solution2"), cloze="question"
)
CHOICES = Layout("Please choose the correct answer to the question: ", labels=ANSWERS, cloze="question")
ENDINGS = Layout(
    "Please choose the correct ending to complete the given sentence: ",
    labels=("ending1", "ending2", "ending3", "ending4"),
    cloze="sentence",
    min_options=4,
)
GAP = Layout(
    "Please choose the correct answer to fill in the blank to complete the given sentence: ",
    labels=("option1", "option2"),
    cloze="gap",
)
LAYOUTS = (TRUE_FALSE, SOLUTIONS, CHOICES, ENDINGS, GAP)


@dataclass(frozen=True)
class BenchmarkTask:
    """One of the eight tasks.

    Attributes:
        paper_name: Its name in the paper's tables; None for a generated task.
        folder: Its folder in LLM-Adapters' `dataset`.
        test_size: Items of its published test set.
        layout: How its records are written, answered and put as a cloze.
    """

    paper_name: str | None
    folder: str
    test_size: int
    layout: Layout


TASKS = {
    "boolq": BenchmarkTask("BoolQ", "boolq", 3270, TRUE_FALSE),
    "piqa": BenchmarkTask("PIQA", "piqa", 1838, SOLUTIONS),
    "social_i_qa": BenchmarkTask("SIQA", "social_i_qa", 1954, CHOICES),
    "hellaswag": BenchmarkTask("HellaSwag", "hellaswag", 10042, ENDINGS),
    "winogrande": BenchmarkTask("WinoGrande", "winogrande", 1267, GAP),
    "arc_easy": BenchmarkTask("ARC-e", "ARC-Easy", 2376, CHOICES),
    "arc_challenge": BenchmarkTask("ARC-c", "ARC-Challenge", 1172, CHOICES),
    "openbookqa": BenchmarkTask("OBQA", "openbookqa", 500, CHOICES),
}
"""The tasks by name, in the order of the paper's tables; every mean is over these eight."""


@dataclass(frozen=True)
class Record:
    """A record as it stands in the file; the names are those of its JSON fields."""

    instruction: str
    input: str
    output: str
    answer: str


@dataclass(frozen=True)
class Question:
    """A record taken apart.

    Attributes:
        layout: The layout that it is written in.
        passage: What the question is about, "" for the usual records, which have no input.
        text: The question, or the sentence to continue or to fill in.
        options: The texts of the options.
        correct: Index of the right one.
    """

    layout: Layout
    passage: str
    text: str
    options: tuple[str, ...]
    correct: int


def check_record(fields: Any) -> Record:
    """A record from the fields of a JSON object; further fields are left out.

    Raises:
        ValueError: It is no object, a field is missing or no text, or the output does not give the answer.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"{str(fields)[:60]!r}; accepted: an object with instruction, input, output and answer")
    for name in Record.__dataclass_fields__:
        if not isinstance(fields.get(name), str):
            raise ValueError(f"{name}={fields.get(name)!r}; accepted: a text")
    record = Record(*(fields[name] for name in Record.__dataclass_fields__))
    if not record.instruction.strip() or not record.answer:
        raise ValueError("an empty instruction or answer; accepted: texts")
    if record.answer not in record.output:
        raise ValueError(f"output={record.output!r} does not give answer={record.answer!r}")
    return record


def parse_question(record: Record, layout: Layout | None = None) -> Question:
    """Takes one record apart.

    Args:
        record: The record.
        layout: The only layout that is accepted; None for any.

    Raises:
        ValueError: The instruction is written in no known or another layout, or its answer is none of its options.
    """
    layout = layout or _find_layout(record.instruction)
    if not record.instruction.startswith(layout.opening):
        raise ValueError(f"instruction {record.instruction[:60]!r}...; accepted: {layout.opening!r}...")
    body, found, ending = record.instruction[len(layout.opening) :].rpartition("Answer format:")
    labels = tuple(ending.strip().split("/"))
    if not found or labels != layout.labels[: len(labels)] or len(labels) < layout.min_options:
        accepted = f"{'/'.join(layout.labels[: layout.min_options])} and on to {layout.labels[-1]}"
        raise ValueError(f"answer format {'/'.join(labels)!r}; accepted: {accepted}")
    if record.answer not in labels:
        raise ValueError(f"answer={record.answer!r}; accepted: {', '.join(labels)}")
    text, options = (body.strip(), layout.options) if layout.options else _split_options(body, labels)
    if layout.cloze == "gap" and text.count("_") != 1:
        raise ValueError(f"sentence {text!r} has {text.count('_')} gaps; accepted: one, written _")
    return Question(layout, record.input.strip(), text, options, labels.index(record.answer))


def _find_layout(instruction: str) -> Layout:
    for layout in LAYOUTS:
        if instruction.startswith(layout.opening):
            return layout
    accepted = "; ".join(repr(layout.opening) for layout in LAYOUTS)
    raise ValueError(f"instruction {instruction[:60]!r}...; accepted beginnings: {accepted}")


def _split_options(body: str, labels: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The question and the texts of its options, each of which stands behind its label, as in "Answer1: ..."."""
    rest, options = body, []
    for label in reversed(labels):
        rest, found, option = rest.rpartition(f"{label.capitalize()}:")
        if not found or not option.strip():
            raise ValueError(f"no text behind {label.capitalize()}: in {body!r}")
        options.append(option.strip())
    if not rest.strip():
        raise ValueError("a question without text")
    return rest.strip(), tuple(reversed(options))
