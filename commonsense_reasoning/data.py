"""Training, validation and test data of a run, read from a folder or hub repository in the layout of LLM-Adapters.

The folder holds the tasks' files, `dataset/<task>/test.json` and `dataset/<task>/train.json`, and the two training sets
of the paper, `commonsense_15k.json` and `commonsense_170k.json`. The files are read as JSON and not by `datasets`,
which guesses the type of a column: "true" beside 7 becomes True, and a malformed record could not be named any more.

The training set `generated` needs no folder: its runs train and are scored on eight generated tasks instead.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from commonsense_reasoning.data_folder import data_folder
from commonsense_reasoning.generated.questions import GENERATED_TASKS, generate_records, identify_questions
from commonsense_reasoning.prompts import Example, cloze_example, paper_example
from commonsense_reasoning.tasks import (
    TASKS,
    BenchmarkTask,
    Question,
    Record,
    check_record,
    for_each_record,
    parse_question,
)
from randlora_core.experiment.interface import MissingInputError
from randlora_core.files import file_fingerprint
from randlora_core.streams import Stream

Form = Literal["paper", "cloze"]
T = TypeVar("T")

PUBLISHED = {"commonsense_15k": 15, "commonsense_170k": 170}
"""The paper's training sets and how many thousand records each has, rounded."""
MIXTURE = "mixture"
"""The name of all tasks' own training files together; no training set of the paper."""
GENERATED = "generated"
"""The name of the generated tasks' training questions together, which need no files."""
TRAINING_NAMES = (*PUBLISHED, MIXTURE, *TASKS, GENERATED)

TRAINING_FILES = ("train.json", "train_l.json")
"""Names of a task's own training file; WinoGrande has several sizes."""
SUBFOLDERS = ("", "dataset", "ft-training_set")
"""Where in the folder files are looked for; the last two are LLM-Adapters' own."""

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


def tasks_of(dataset: str) -> Mapping[str, BenchmarkTask]:
    """The eight tasks that a run on a training set is scored on: the real ones, or those that are generated."""
    return GENERATED_TASKS if dataset == GENERATED else TASKS


def identify_data(dataset: str, folder: str | None) -> str:
    """A fingerprint of all files that a run on a training set reads; files are read again only if they have changed.

    That of the generated questions is one of their text.

    Raises:
        ValueError: The training set's name is unknown.
        MissingInputError: A file is not here.
    """
    if dataset == GENERATED:
        return identify_questions()
    files = {**find_training_files(dataset, folder), **{f"{name} test": find_test_file(name, folder) for name in TASKS}}
    facts = [f"{name} {file_fingerprint(path)}\n" for name, path in files.items()]
    return hashlib.sha256("".join(facts).encode()).hexdigest()


def find_training_files(dataset: str, folder: str | None) -> dict[str, Path]:
    """The files of a training set: one, or for the mixture those of all tasks that have one here.

    Args:
        dataset: A name of `TRAINING_NAMES`.
        folder: The folder of data.

    Raises:
        ValueError: The name is unknown.
        MissingInputError: The files are not here.
    """
    if dataset not in TRAINING_NAMES:
        raise ValueError(f"unknown training set dataset={dataset!r}; accepted: {', '.join(TRAINING_NAMES)}")
    if dataset in PUBLISHED:
        wanted = {dataset: (f"{dataset}.json",)}
    else:
        names = TASKS if dataset == MIXTURE else (dataset,)
        wanted = {name: tuple(f"{TASKS[name].folder}/{file}" for file in TRAINING_FILES) for name in names}
    found = {name: _find(files, folder) for name, files in wanted.items()}
    here = {name: path for name, path in found.items() if path is not None}
    if not here:
        files = ", ".join(file for files in wanted.values() for file in files)
        raise MissingInputError(f"training set {dataset!r} is not in paths.data={folder}: no file {files}")
    return here


def find_test_file(name: str, folder: str | None) -> Path:
    """A task's test file.

    Raises:
        MissingInputError: It is not here.
    """
    file = f"{TASKS[name].folder}/test.json"
    path = _find((file,), folder)
    if path is None:
        raise MissingInputError(f"the test set of {name} is not in paths.data={folder}: no file {file}")
    return path


def _find(files: Sequence[str], place: str | None) -> Path | None:
    folder = data_folder(place)
    if folder is None:
        return None
    paths = (folder / subfolder / file for file in files for subfolder in SUBFOLDERS)
    return next((path for path in paths if path.is_file()), None)


def read_records(path: Path) -> list[Record]:
    """All records of a JSON file, which is a list of objects.

    Raises:
        ValueError: The file is no JSON, no list or an empty one, or a record is malformed; it is named by its number.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON file ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: {type(rows).__name__} of no records; accepted: a list of objects")
    return for_each_record(check_record, rows, str(path))


def load_training(dataset: str, folder: str | None, *, form: Form, count: int | None, seed: int) -> TrainingData:
    """Reads a training set, holds the validation examples out and chooses training examples from the others.

    The tasks of a mixture take turns, so that a small choice has as many examples of each; a task whose examples are
    used up drops out. A choice is part of every larger one of the same seed.

    Args:
        dataset: A name of `TRAINING_NAMES`.
        folder: The folder of data.
        form: What an example looks like as text.
        count: Training examples; None for all.
        seed: Seed of the choice.

    Raises:
        ValueError: The name is unknown, a file is malformed or has another size than its name says, or there are fewer
            examples than asked for.
        MissingInputError: The files are not here.
    """
    groups = _read_groups(dataset, folder, form)
    num_validation = min(MAX_VALIDATION, int(MAX_VALIDATION_SHARE * sum(map(len, groups.values()))))
    validation = [example for _, example in _take_turns(groups, "validation")[:num_validation]]
    if not validation:
        raise ValueError(f"{dataset} has too few examples to hold some out; accepted: at least {FEWEST}")
    held_out = set(validation)
    kept = {name: [example for example in group if example not in held_out] for name, group in groups.items()}
    available = _take_turns(kept, "training examples", seed)
    if count is not None and count > len(available):
        raise ValueError(f"examples={count}; accepted: 1 to {len(available)}, or null for all of {dataset}")
    chosen = available[:count]
    remarks = () if dataset in PUBLISHED else (_composition(dataset, Counter(name for name, _ in chosen)),)
    return TrainingData(tuple(example for _, example in chosen), tuple(validation), len(available), remarks)


def _read_groups(dataset: str, folder: str | None, form: Form) -> dict[str, list[Example]]:
    """All examples of a training set by the name of their task, or of the set where it is one of the paper's."""
    if dataset == GENERATED:
        return {name: _as_examples(generate_records(name, "train"), form, name) for name in GENERATED_TASKS}
    files = find_training_files(dataset, folder)
    groups = {name: _as_examples(read_records(path), form, str(path)) for name, path in files.items()}
    if dataset in PUBLISHED and round(len(groups[dataset]) / 1000) != PUBLISHED[dataset]:
        size, thousands = len(groups[dataset]), PUBLISHED[dataset]
        raise ValueError(f"{files[dataset]} has {size:,} records; accepted: about {thousands},000")
    return groups


def _as_examples(records: Sequence[Record], form: Form, where: str) -> list[Example]:
    if form == "paper":
        return [paper_example(record) for record in records]
    return [cloze_example(question) for question in for_each_record(parse_question, records, where)]


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


def _composition(dataset: str, counts: Mapping[str, int]) -> str:
    """What a training set that is none of the paper's is made of."""
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    if dataset == GENERATED:
        made = "made from facts that this repository writes down, none of which is in a test question"
        questions = f"{sum(counts.values()):,} training questions ({parts})"
        return f"{dataset}: {questions}, {made}: a demonstration that marks no winner."
    unseen = ", ".join(name for name in TASKS if name not in counts)
    remark = f"{dataset}: {sum(counts.values()):,} training examples ({parts}), no training set of the paper"
    return f"{remark}; not trained on: {unseen}." if unseen else f"{remark}."


def load_test_set(name: str, folder: str | None, count: int | None) -> TestSet:
    """Reads a task's test set.

    Args:
        name: A name of `TASKS` or of `GENERATED_TASKS`.
        folder: The folder of data; generated tasks need none.
        count: Items to take, always the same ones, which are part of every larger choice; None for all.

    Raises:
        ValueError: The file is malformed or has fewer items.
        MissingInputError: The file is not here.
    """
    if name in GENERATED_TASKS:
        task, where, records = GENERATED_TASKS[name], name, generate_records(name, "test")
    else:
        task, where = TASKS[name], str(find_test_file(name, folder))
        records = read_records(Path(where))
    questions = for_each_record(lambda record: parse_question(record, task.layout), records, where)
    size = len(records)
    if count is not None and count > size:
        raise ValueError(f"test_items={count}; accepted: 1 to {size}, as many as {where} has, or null for all")
    remarks = []
    if size != task.test_size:
        remarks.append(f"{name} has {size:,} items here, {task.test_size:,} as published; numbers do not compare.")
    if count is not None and count < size:
        remarks.append(f"{name}: a fixed choice of {count:,} of {size:,} items.")
    chosen = sorted(np.argsort(Stream("test items", name).array(size), kind="stable")[:count])
    return TestSet(
        name if count in (None, size) else f"{name}_{count}",
        name,
        tuple(records[index] for index in chosen),
        tuple(questions[index] for index in chosen),
        tuple(remarks),
    )
