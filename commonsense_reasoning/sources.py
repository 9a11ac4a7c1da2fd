"""Where the questions of a run come from: files in the layout of LLM-Adapters, or the generated tasks.

The folder holds the tasks' files, `dataset/<task>/test.json` and `dataset/<task>/train.json`, and the two training sets
of the paper, `commonsense_15k.json` and `commonsense_170k.json`. In place of a JSON file there may be Parquet files, as
`datasets` writes them for a configuration of that name: `<task>/test-00000-of-00001.parquet`.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from commonsense_reasoning.data_folder import data_folder
from commonsense_reasoning.generated.questions import GENERATED_TASKS, generate_records, identify_questions
from commonsense_reasoning.record_files import read_records
from commonsense_reasoning.tasks import TASKS, BenchmarkTask, Record
from randlora_core.datasets.parquet import parquet_shards
from randlora_core.experiment.interface import MissingInputError
from randlora_core.files import file_fingerprint

T = TypeVar("T")

PUBLISHED = {"commonsense_15k": 15, "commonsense_170k": 170}
"""The paper's training sets and how many thousand records each has, rounded."""
MIXTURE = "mixture"
"""The name of all tasks' own training files together; no training set of the paper."""
GENERATED = "generated"
"""The name of the generated tasks' training questions together, which need no files."""
TRAINING_NAMES = (*PUBLISHED, MIXTURE, *TASKS, GENERATED)

SUBFOLDERS = ("", "dataset", "ft-training_set")
"""Where in the folder files are looked for; the last two are LLM-Adapters' own."""


class Source(abc.ABC):
    """The questions that go with a training set.

    Attributes:
        name: The training set's name.
        tasks: The eight tasks that its runs are scored on.
    """

    name: str
    tasks: Mapping[str, BenchmarkTask]

    @abc.abstractmethod
    def identify(self) -> str:
        """A fingerprint of all questions, those of the tests included, found without reading them anew."""

    @abc.abstractmethod
    def read_training(self, parse: Callable[[Record], T]) -> dict[str, list[T]]:
        """What `parse` makes of the training records, by their task, or by the set where it is one of the paper's.

        Raises:
            ValueError: A file is malformed or has another size than its name says, or `parse` refuses a record.
            MissingInputError: The files are not here.
        """

    @abc.abstractmethod
    def read_test(self, task: str, parse: Callable[[Record], T]) -> list[T]:
        """What `parse` makes of a task's test records; raises as `read_training`."""

    @abc.abstractmethod
    def describe_choice(self, counts: Mapping[str, int]) -> str | None:
        """What a reader of a table must know of training examples, so many of each task; None for nothing."""


def find_source(dataset: str, place: str | None) -> Source:
    """The source of a training set; nothing is read.

    Args:
        dataset: A name of `TRAINING_NAMES`.
        place: A folder or a hub repository, see `data_folder`; the generated tasks need none.

    Raises:
        ValueError: The name is unknown.
    """
    if dataset not in TRAINING_NAMES:
        raise ValueError(f"unknown training set dataset={dataset!r}; accepted: {', '.join(TRAINING_NAMES)}")
    return GeneratedQuestions() if dataset == GENERATED else StoredQuestions(dataset, place)


class GeneratedQuestions(Source):
    """The questions that are made from written facts."""

    name, tasks = GENERATED, GENERATED_TASKS

    def identify(self) -> str:
        """A fingerprint of the questions' text."""
        return identify_questions()

    def read_training(self, parse: Callable[[Record], T]) -> dict[str, list[T]]:
        """What `parse` makes of the training questions, by their task."""
        return {name: [parse(record) for record in generate_records(name, "train")] for name in self.tasks}

    def read_test(self, task: str, parse: Callable[[Record], T]) -> list[T]:
        """What `parse` makes of a task's test questions."""
        return [parse(record) for record in generate_records(task, "test")]

    def describe_choice(self, counts: Mapping[str, int]) -> str:
        """How many questions of each task there are, and what they are good for."""
        made = "made from facts that this repository writes down, none of which is in a test question"
        questions = f"{sum(counts.values()):,} training questions ({_listed(counts)})"
        return f"{self.name}: {questions}, {made}: a demonstration that marks no winner."


@dataclass(frozen=True)
class StoredQuestions(Source):
    """The questions of files.

    Attributes:
        name: A name of `TRAINING_NAMES` but that of the generated ones.
        place: A folder or a hub repository, see `data_folder`; None for none, where everything is missing.
    """

    name: str
    place: str | None
    tasks = TASKS

    def identify(self) -> str:
        """A fingerprint of the files; one is read again only if it has changed."""
        files = {**self._training_files(), **{f"{task} test": self._test_files(task) for task in self.tasks}}
        facts = [" ".join([name, *map(file_fingerprint, paths)]) for name, paths in files.items()]
        return hashlib.sha256("".join(f"{fact}\n" for fact in facts).encode()).hexdigest()

    def read_training(self, parse: Callable[[Record], T]) -> dict[str, list[T]]:
        """What `parse` makes of the training records; of a mixture's tasks those that have training files."""
        files = self._training_files()
        groups = {name: read_records(paths, parse) for name, paths in files.items()}
        thousands = PUBLISHED.get(self.name)
        if thousands is not None and round((size := len(groups[self.name])) / 1000) != thousands:
            where = ", ".join(map(str, files[self.name]))
            raise ValueError(f"{where} has {size:,} records; accepted: about {thousands},000")
        return groups

    def read_test(self, task: str, parse: Callable[[Record], T]) -> list[T]:
        """What `parse` makes of the records of a task's test files."""
        return read_records(self._test_files(task), parse)

    def describe_choice(self, counts: Mapping[str, int]) -> str | None:
        """What a training set that is none of the paper's is made of, and which tasks are unseen."""
        if self.name in PUBLISHED:
            return None
        unseen = ", ".join(task for task in self.tasks if task not in counts)
        examples = f"{sum(counts.values()):,} training examples ({_listed(counts)})"
        remark = f"{self.name}: {examples}, no training set of the paper"
        return f"{remark}; not trained on: {unseen}." if unseen else f"{remark}."

    def _training_files(self) -> dict[str, tuple[Path, ...]]:
        """The files of the training set; of a mixture those of all tasks that have some here."""
        if self.name in PUBLISHED:
            wanted = {self.name: SplitFiles.of_set(self.name)}
        else:
            names = self.tasks if self.name == MIXTURE else (self.name,)
            wanted = {name: SplitFiles.of_task(name, "train") for name in names}
        found = {name: files for name, one in wanted.items() if (files := one.find(self.place))}
        if not found:
            missing = ", ".join(file for one in wanted.values() for file in one.names)
            raise MissingInputError(f"training set {self.name!r} is not in paths.data={self.place}: no file {missing}")
        return found

    def _test_files(self, task: str) -> tuple[Path, ...]:
        wanted = SplitFiles.of_task(task, "test")
        if not (files := wanted.find(self.place)):
            missing = ", ".join(wanted.names)
            raise MissingInputError(f"the test set of {task} is not in paths.data={self.place}: no file {missing}")
        return files


@dataclass(frozen=True)
class SplitFiles:
    """The places where the records of one split may lie, within the folder of data or its `SUBFOLDERS`.

    Attributes:
        files: Single files, of which the first one that is there counts.
        folders: Folders of Parquet files, looked into where none of `files` is there; also their subfolder data/.
        split: The split that is wanted of the Parquet files, whose names begin with it.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    split: Literal["train", "test"]

    @classmethod
    def of_set(cls, name: str) -> SplitFiles:
        """The places of one of the paper's training sets."""
        return cls((f"{name}.json", f"{name}.parquet"), (name,), "train")

    @classmethod
    def of_task(cls, name: str, split: Literal["train", "test"]) -> SplitFiles:
        """The places of a task's own records: its folder in LLM-Adapters, or one called as the task is here.

        WinoGrande has training files of several sizes, of which train_l.json is one.
        """
        folders = tuple(dict.fromkeys((TASKS[name].folder, name)))
        endings = ("train.json", "train_l.json") if split == "train" else ("test.json",)
        return cls(tuple(f"{folder}/{ending}" for folder in folders for ending in endings), folders, split)

    @property
    def names(self) -> tuple[str, ...]:
        """What is looked for, for the message that it is not there."""
        return (*self.files, *(f"{folder}/{self.split}*.parquet" for folder in self.folders))

    def find(self, place: str | None) -> tuple[Path, ...]:
        """The files that are there, in order; none where there is no folder.

        Raises:
            ValueError: One of several Parquet files of the split is missing.
            MissingInputError: As `data_folder`.
        """
        folder = data_folder(place)
        roots = [] if folder is None else [folder / subfolder for subfolder in SUBFOLDERS]
        for path in (root / file for file in self.files for root in roots):
            if path.is_file():
                return (path,)
        shards = (parquet_shards(root / name).get(self.split, ()) for root in roots for name in self.folders)
        return next(filter(None, shards), ())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
