"""Reads the paper's numbers from the CSV files of `published/`, and says which rows of ours they stand beside.

The column `data` is where reading goes wrong: "1" is one image per class, "1.0" all images. Everything is therefore
read as text, and a number gets its type from the column it stands in.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from randlora_core.experiment.sections import Section

PUBLISHED = Path(__file__).resolve().parents[3] / "published"
"""The folder of the files; the package is installed in editable mode, so it lies beside it."""

AVERAGE = "average"
"""The data set's name of a number that is a printed average."""

ACCURACY, VRAM = "accuracy", "vram_gb"
"""The columns that hold what reports compare: percent, and GB."""

DATASETS, TASKS = "table07_vision_datasets.csv", "table15_commonsense_per_task.csv"
"""The files that name all data sets of the paper: those of images, and the tasks of language models."""

TRAINING_SETS = {"15k": "commonsense_15k", "170k": "commonsense_170k", "zero-shot": "commonsense_15k"}
"""What the column `data` says of a language model -> the training set in whose tables the number stands.

A model that was not trained stands in those of the smaller one, as in `configs/comparison/paper/commonsense.yaml`.
"""

Columns = Mapping[str, str | int | float]
Amount = tuple[int | None, float | None] | str


@dataclass(frozen=True)
class PublishedNumber:
    """One number of the paper.

    Attributes:
        columns: The whole row of the file, as text.
        model: The model's name in the paper, such as "CLIP ViT-B/32".
        method: The method's, such as "RandLoRA" or "FT".
        rank: The rank in the row's label; None where there is none.
        shots: Training images per class; None where training images were not chosen by shots.
        fraction: Share of the training images; None where they were chosen by shots, and for other data than images.
        dataset: The data set's name in the paper, or `AVERAGE`.
        value: The number as printed.
        training_set: What a language model was trained on, a value of `TRAINING_SETS`; None for images.
    """

    columns: Mapping[str, str]
    model: str
    method: str
    rank: int | None
    shots: int | None
    fraction: float | None
    dataset: str
    value: float
    training_set: str | None = None

    @property
    def amount(self) -> Amount:
        """What it was trained on: the images as (shots, fraction), or a language model's training set."""
        return self.training_set or (self.shots, self.fraction)


@dataclass(frozen=True)
class PublishedTable:
    """The numbers of one file.

    Attributes:
        file: Its name.
        quantity: The column that they stand in: `ACCURACY` or `VRAM`.
        columns: The names of all columns.
        numbers: The numbers in the order of the file; empty cells are none.
    """

    file: str
    quantity: str
    columns: tuple[str, ...]
    numbers: tuple[PublishedNumber, ...]

    def datasets_of(self, average: PublishedNumber) -> tuple[str, ...]:
        """The data sets that an average is over: the file's, or all of the paper's where it has averages alone.

        These are the images' or the tasks, by what the average's model was trained on: a file can have both.
        """
        names = dict.fromkeys(number.dataset for number in self.numbers)
        if set(names) == {AVERAGE}:
            file = DATASETS if average.training_set is None else TASKS
            names = dict.fromkeys(row["dataset"] for row in _rows(file))
        return tuple(name for name in names if name != AVERAGE)


class PublishedRows(Section):
    """Which rows of a comparison stand beside which rows of a file of published numbers.

    Attributes:
        file: A file of `published/`.
        rows: Label of a row of the comparison -> columns and values that select the file's row. The rank is stated
            here, since the paper's own versions disagree on some.
        where: Columns and values that hold for all rows, such as {model: CLIP ViT-L/14}.
        quantity: The column of the numbers, `ACCURACY` or `VRAM`, where the file has both; null takes the accuracy.
    """

    file: str
    rows: Annotated[Mapping[str, Annotated[Columns, Field(min_length=1)]], Field(min_length=1)]
    where: Columns = Field(default_factory=dict)
    quantity: Literal["accuracy", "vram_gb"] | None = None

    @model_validator(mode="after")
    def _is_in_the_file(self) -> PublishedRows:
        for label in self.rows:
            found = self.numbers(label)
            places = {(number.model, number.amount, number.dataset) for number in found}
            if not found or len(places) < len(found):
                wanted = ", ".join(f"{column}={value}" for column, value in self._wanted(label).items())
                amount = "no number" if not found else "several numbers of one data set"
                raise ValueError(f"published.rows.{label}: {amount} with {wanted}; accepted: one row of {self.file}")
        return self

    @property
    def table(self) -> PublishedTable:
        """The file's numbers."""
        return read_published(self.file, self.quantity)

    def numbers(self, label: str) -> tuple[PublishedNumber, ...]:
        """The file's numbers that stand beside a row of the comparison; none for a row that it does not name.

        Raises:
            ValueError: A column that the file does not have.
        """
        if label not in self.rows:
            return ()
        wanted = self._wanted(label)
        for column in wanted:
            if column not in self.table.columns:
                accepted = ", ".join(self.table.columns)
                raise ValueError(f"published: {self.file} has no column {column!r}; accepted: {accepted}")
        return tuple(
            number
            for number in self.table.numbers
            if all(number.columns[column] == str(value) for column, value in wanted.items())
        )

    def _wanted(self, label: str) -> dict[str, str | int | float]:
        return {**self.where, **self.rows[label]}


@functools.lru_cache(maxsize=32)
def read_published(file: str, quantity: str | None = None) -> PublishedTable:
    """Reads a file of `published/`.

    Args:
        file: Its name.
        quantity: The column to read, `ACCURACY` or `VRAM`; None for the first of them that the file has.

    Raises:
        ValueError: There is no such file, or it has no such column.
    """
    rows = _rows(file)
    columns = tuple(rows[0])
    wanted = (ACCURACY, VRAM) if quantity is None else (quantity,)
    quantity = next((name for name in wanted if name in columns), None)
    if quantity is None:
        raise ValueError(f"published: {file} has no column {' or '.join(wanted)}; accepted: files that have one")
    numbers = tuple(_number(row, quantity) for row in rows if row[quantity])
    return PublishedTable(file, quantity, columns, numbers)


def _rows(file: str) -> list[dict[str, str]]:
    path = PUBLISHED / file
    if Path(file).name != file or not path.is_file():
        known = ", ".join(sorted(path.name for path in PUBLISHED.glob("*.csv")))
        raise ValueError(f"published: no file {file!r}; accepted: {known}")
    with open(path, encoding="ascii", newline="") as lines:
        return list(csv.DictReader(lines))


def _number(row: Mapping[str, str], quantity: str) -> PublishedNumber:
    """A row with the types of its columns; a file without a column `data` is on all images."""
    data = row.get("data", "1.0")
    regime = row.get("regime", "fraction" if "." in data else "")
    return PublishedNumber(
        columns=row,
        model=row["model"],
        method=row["method"],
        rank=int(row["rank"]) if row.get("rank") else None,
        shots=int(data) if regime == "shots" else None,
        fraction=float(data) if regime == "fraction" else None,
        dataset=row.get("dataset", AVERAGE),
        value=float(row[quantity]),
        training_set=TRAINING_SETS.get(data),
    )
