"""Training, validation and test data of a run: which questions of a `Source` it takes, and in which form.

A run on the training set `generated` trains and is scored on eight generated tasks instead of the real ones.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from commonsense_reasoning.prompts import Example, cloze_example, paper_example
from commonsense_reasoning.sources import Source
from commonsense_reasoning.tasks import Question, Record, parse_question
from randlora_core.streams import Stream

Form = Literal["paper", "cloze"]
T = TypeVar("T")

EXAMPLE_OF: Mapping[Form, Callable[[Record], Example]] = {
    "paper": paper_example,
    "cloze": lambda record: cloze_example(parse_question(record)),
}
"""From a record to the example to learn, by its form."""

MAX_VALIDATION = 120
MAX_VALIDATION_SHARE = 0.2
FEWEST = math.ceil(1 / MAX_VALIDATION_SHARE)


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and validates with.

    Attributes:
        train: The chosen training examples.
        validation: Examples that no run trains on; the choice depends on no seed.
        num_available: Examples that `train` was chosen from.
        remarks: What a reader of a table must know about them.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    num_available: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class TestSet:
    """Items of one task.

    Attributes:
        name: The task's name, with the number of items behind it where these are a part of the file's.
        task: The task's name.
        records: The items as they stand in the file.
        questions: The items taken apart.
        remarks: What a reader of a table must know about them.
    """

    __test__ = False  # no test class of pytest's

    name: str
    task: str
    records: tuple[Record, ...]
    questions: tuple[Question, ...]
    remarks: tuple[str, ...]


def load_training(source: Source, *, form: Form, count: int | None, seed: int) -> TrainingData:
    """Reads a training set, holds the validation examples out and chooses training examples from the others.

    The tasks of a mixture take turns, so that a small choice has as many examples of each; a task whose examples are
    used up drops out. A choice is part of every larger one of the same seed.

    Args:
        source: Where the training set comes from.
        form: What an example looks like as text.
        count: Training examples; None for all.
        seed: Seed of the choice.

    Raises:
        ValueError: A file is malformed or has another size than its name says, or there are fewer examples than asked
            for.
        MissingInputError: The files are not here.
    """
    groups = source.read_training(EXAMPLE_OF[form])
    num_validation = min(MAX_VALIDATION, int(MAX_VALIDATION_SHARE * sum(map(len, groups.values()))))
    validation = [example for _, example in _take_turns(groups, "validation")[:num_validation]]
    if not validation:
        raise ValueError(f"{source.name} has too few examples to hold some out; accepted: at least {FEWEST}")
    held_out = set(validation)
    kept = {name: [example for example in group if example not in held_out] for name, group in groups.items()}
    available = _take_turns(kept, "training examples", seed)
    if count is not None and count > len(available):
        raise ValueError(f"examples={count}; accepted: 1 to {len(available)}, or null for all of {source.name}")
    chosen = available[:count]
    remark = source.describe_choice(Counter(name for name, _ in chosen))
    return TrainingData(
        train=tuple(example for _, example in chosen),
        validation=tuple(validation),
        num_available=len(available),
        remarks=() if remark is None else (remark,),
    )


def _take_turns(groups: Mapping[str, Sequence[T]], *keys: str | int) -> list[tuple[str, T]]:
    """The members of all groups, each with its group's name: one of every group, then the next one of every group.

    Args:
        groups: Members by the group's name.
        keys: Keys of the random stream that orders each group.
    """
    orders = [
        [(name, group[index]) for index in np.argsort(Stream(*keys, name).array(len(group)), kind="stable")]
        for name, group in groups.items()
    ]
    return [entry for turn in itertools.zip_longest(*orders) for entry in turn if entry is not None]


def load_test_set(source: Source, name: str, count: int | None) -> TestSet:
    """Reads a task's test set.

    Args:
        source: Where it comes from.
        name: A name of the source's tasks.
        count: Items to take, always the same ones, which are part of every larger choice; None for all.

    Raises:
        ValueError: The file is malformed or has fewer items.
        MissingInputError: The file is not here.
    """
    task = source.tasks[name]
    items = source.read_test(name, lambda record: (record, parse_question(record, task.layout)))
    size = len(items)
    if count is not None and count > size:
        raise ValueError(f"test_items={count}; accepted: 1 to {size}, as many as {name} has, or null for all")
    remarks = []
    if size != task.test_size:
        remarks.append(f"{name} has {size:,} items here, {task.test_size:,} as published; numbers do not compare.")
    if count is not None and count < size:
        remarks.append(f"{name}: a fixed choice of {count:,} of {size:,} items.")
    chosen = [
        items[index] for index in sorted(np.argsort(Stream("test items", name).array(size), kind="stable")[:count])
    ]
    return TestSet(
        name=name if count in (None, size) else f"{name}_{count}",
        task=name,
        records=tuple(record for record, _ in chosen),
        questions=tuple(question for _, question in chosen),
        remarks=tuple(remarks),
    )
