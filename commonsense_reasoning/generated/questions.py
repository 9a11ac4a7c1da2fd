"""Questions about the written facts, and the records that hold them: eight tasks in the shapes of the eight real ones.

Every fact is asked for by one question in testing and, with other wrong options, by up to `VARIANTS` in training. What
stands in a question beside its fact, its wrong options included, comes from facts of the same split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from commonsense_reasoning.generated.facts import SPLITS, Split, split_facts
from commonsense_reasoning.tasks import (
    ANSWER_OPENING,
    CHOICES,
    ENDINGS,
    GAP,
    SOLUTIONS,
    TRUE_FALSE,
    BenchmarkTask,
    Layout,
    Question,
    Record,
)
from randlora_core.streams import Stream

Facts = Mapping[str, Sequence[str]]
VARIANTS = 3
"""Questions that are trained on for each fact, where there is more than one way to ask for it."""

PEOPLE = ("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kate", "Leo")


def generate_records(task: str, split: Split) -> list[Record]:
    """All records of a task, in the format of LLM-Adapters; always the same ones.

    Args:
        task: A name of `GENERATED_TASKS`.
        split: Whether to ask for the facts to train on or for the others.
    """
    facts, (_, ask) = split_facts(task, split), ASK[task]
    variants = VARIANTS if split == "train" and task != "properties" else 1
    streams = (Stream("generated questions", task, split, number) for number in range(variants))
    return [write_record(question) for stream in streams for question in ask(facts, stream)]


def identify_questions() -> str:
    """A fingerprint of all questions of all tasks; it changes with any fact and with how it is asked for."""
    records = [record for name in GENERATED_TASKS for split in SPLITS for record in generate_records(name, split)]
    return hashlib.sha256("".join(f"{record}\n" for record in records).encode()).hexdigest()


def write_record(question: Question) -> Record:
    """The record that `parse_question` takes apart into this question."""
    layout, blank_line = question.layout, "\n\n"
    labels = layout.labels[: len(question.options)]
    listed = () if layout.options else zip(labels, question.options, strict=True)
    options = [f"{label.capitalize()}: {option}" for label, option in listed]
    listing = (blank_line if layout is SOLUTIONS else " ").join(options)
    ending = f"Answer format: {'/'.join(labels)}"
    body = f"{question.text}{blank_line}{listing}" if listing else question.text
    instruction = f"{layout.opening}{body}{' ' if layout is GAP else blank_line}{ending}"
    answer = labels[question.correct]
    return Record(instruction, question.passage, f"{ANSWER_OPENING} {answer}", answer)


def _question(layout: Layout, text: str, right: str, wrong: Sequence[str], stream: Stream) -> Question:
    """A question whose right option stands at a random place."""
    correct = stream.integer(len(wrong) + 1)
    return Question(layout, "", text, (*wrong[:correct], right, *wrong[correct:]), correct)


def _draw(items: Sequence[str], count: int, stream: Stream) -> list[str]:
    """Different items, as many as asked for."""
    left, found = list(dict.fromkeys(items)), []
    for _ in range(count):
        found.append(left.pop(stream.integer(len(left))))
    return found


def _each(facts: Facts) -> Iterator[tuple[str, str]]:
    """Every fact with its group."""
    return ((group, fact) for group, members in facts.items() for fact in members)


def _ask_properties(facts: Facts, stream: Stream) -> Iterator[Question]:
    for group, thing in _each(facts):
        answer, _, text = group.partition(", ")
        yield Question(TRUE_FALSE, "", f"{text.format(thing)}?", TRUE_FALSE.options, int(answer == "no"))


def _ask_uses(facts: Facts, stream: Stream) -> Iterator[Question]:
    for group, fact in _each(facts):
        goal, tool = fact.split(" = ")
        others = [other.split(" = ")[1] for name in facts if name != group for other in facts[name]]
        (wrong,) = _draw([other for other in others if other != tool], 1, stream)
        yield _question(SOLUTIONS, f"How do you {goal}?", f"Use {tool}.", [f"Use {wrong}."], stream)


def _ask_feelings(facts: Facts, stream: Stream) -> Iterator[Question]:
    """The wrong feelings are of the two other sorts, so that nobody could have them as well."""
    sorts: dict[str, list[str]] = {}
    for group in facts:
        sort, feeling = group.split(", ")
        sorts.setdefault(sort, []).append(feeling)
    for group, event in _each(facts):
        sort, feeling = group.split(", ")
        wrong = [stream.choice(sorts[other]) for other in sorts if other != sort]
        person = stream.choice(PEOPLE)
        yield _question(CHOICES, f"{person} {event}. How does {person} feel?", feeling, _draw(wrong, 2, stream), stream)


def _ask_next_steps(facts: Facts, stream: Stream) -> Iterator[Question]:
    """The wrong endings are the last steps of other activities."""
    last_steps = [fact.split(" = ")[-1] for _, fact in _each(facts)]
    for _, fact in _each(facts):
        title, *steps, last = fact.split(" = ")
        person = stream.choice(PEOPLE)
        text = f"{title}: {' '.join(f'{person} {step}.' for step in steps)} Then {person}"
        wrong = _draw([step for step in last_steps if step != last], 3, stream)
        yield _question(ENDINGS, text, f"{last}.", [f"{step}." for step in wrong], stream)


SENTENCES = (
    "The {thing} does not fit into the {container} because the _ is too {size}.",
    "The {container} cannot hold the {thing} because the _ is too {size}.",
    "Nobody got the {thing} into the {container}, since the _ was too {size}.",
)


def _ask_sizes(facts: Facts, stream: Stream) -> Iterator[Question]:
    """Which of two is too big or too small: a thing, or a container of a smaller size."""
    for group, fact in _each(facts):
        others = [one for other in facts if _fails_to_fit(group, other) for one in facts[other]]
        thing, container = (fact, stream.choice(others)) if group.startswith("thing") else (stream.choice(others), fact)
        is_big = stream.integer(2) == 0
        text = stream.choice(SENTENCES).format(thing=thing, container=container, size="big" if is_big else "small")
        right, wrong = (thing, container) if is_big else (container, thing)
        yield _question(GAP, text, right, [wrong], stream)


def _fails_to_fit(group: str, other: str) -> bool:
    """Whether one of two groups is of things and the other one of smaller containers."""
    (first, size), (second, other_size) = sorted((group.split(), other.split()), reverse=True)
    return (first, second) == ("thing", "container") and size > other_size


def _ask_kinds(facts: Facts, stream: Stream) -> Iterator[Question]:
    for kind, thing in _each(facts):
        wrong = [stream.choice(facts[other]) for other in _draw([name for name in facts if name != kind], 3, stream)]
        yield _question(CHOICES, f"Which of these is {kind}?", thing, wrong, stream)


def _ask_materials(facts: Facts, stream: Stream) -> Iterator[Question]:
    for material, thing in _each(facts):
        wrong = _draw([name for name in facts if name != material], 3, stream)
        yield _question(CHOICES, f"What is usually the material of {thing}?", material, wrong, stream)


def _ask_places(facts: Facts, stream: Stream) -> Iterator[Question]:
    for place, thing in _each(facts):
        wrong = _draw([name for name in facts if name != place], 3, stream)
        yield _question(CHOICES, f"You are most likely to find {thing}", place, wrong, stream)


ASK: dict[str, tuple[Layout, Callable[[Facts, Stream], Iterator[Question]]]] = {
    "properties": (TRUE_FALSE, _ask_properties),
    "uses": (SOLUTIONS, _ask_uses),
    "feelings": (CHOICES, _ask_feelings),
    "next_steps": (ENDINGS, _ask_next_steps),
    "sizes": (GAP, _ask_sizes),
    "kinds": (CHOICES, _ask_kinds),
    "materials": (CHOICES, _ask_materials),
    "places": (CHOICES, _ask_places),
}
"""What every task's records look like, and how its facts are asked for."""

GENERATED_TASKS = {
    name: BenchmarkTask(None, name, sum(map(len, split_facts(name, "test").values())), layout)
    for name, (layout, _) in ASK.items()
}
"""The tasks by name, each at the place of the real one whose shape it has; in a test every fact is asked for once."""
