"""Comparison files: which methods, data and seeds stand in one table.

A file of `configs/comparison` (`comparison_names` says where it lies) holds what the comparison varies; everything else
is the run's own Hydra config, to which the file's and the command line's overrides are passed. With `like: <name>` a
file states only what differs from another one, also one of another scale (`like: paper/figure3`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.interface import Experiment, find_experiment
from randlora_core.experiment.reports.published import PublishedRows
from randlora_core.experiment.sections import Names, Section, validated
from randlora_core.experiment.sweeps.comparison_names import comparison_names, find_comparison, scale_of

Values = Annotated[tuple[str | int | float | None, ...], Field(strict=False, min_length=1)]
Seeds = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
Grid = Mapping[str, Values]
Grids = Annotated[
    tuple[Grid, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(lambda given: (given,) if isinstance(given, Mapping) else given),
]
Pairs = Annotated[tuple[Annotated[tuple[str, str], Field(strict=False)], ...], Field(strict=False)]


class Row(Section):
    """One method of a comparison.

    Attributes:
        overrides: What makes a run of this method, such as `adapter=lora adapter.rank=4`.
        experiment: Whose runs they are where they are not those of the file's experiment.
        axes: Values on the experiment's axes where they are not the file's.
        only: Axis -> those of the values at which alone the row stands.
        centre: Middle of the learning-rate grid; null for a method without one.
        tuned_on: Overrides that name the settings whose tuned learning rates this row takes; empty for its own.
    """

    overrides: Names
    experiment: str | None = None
    axes: Grids | None = None
    only: Grid = Field(default={})
    centre: Annotated[float, Field(gt=0)] | None = None
    tuned_on: Names | None = None


class Where(Section):
    """Overrides for the runs that stand at some values of the axes, such as longer training on one data set.

    Attributes:
        at: Values on axes.
        overrides: Passed to the runs that have them, after the file's own overrides.
    """

    at: Mapping[str, str | int | float | None]
    overrides: Names


class GridRule(Section):
    """How learning rates are chosen.

    Attributes:
        seed: Seed of the tuning runs; none of the comparison's.
        num_values: Values in every method's first grid.
        limit: Values per method after which a grid is widened no more.
    """

    seed: Annotated[int, Field(ge=0)]
    num_values: Annotated[int, Field(ge=3)]
    limit: Annotated[int, Field(ge=3)]


class ComparisonFile(Section):
    """A comparison as its file states it.

    Attributes:
        experiment: Whose runs its rows are, unless they say otherwise.
        axes: Axis -> values; the table has a column for every combination. Several such mappings, with the same axes,
            make columns for the combinations of each, such as for 1 to 16 shots and for two fractions of the images.
        seeds: Seeds of every row.
        methods: The rows, in order.
        tuning: How learning rates are chosen.
        overrides: Passed to every run of the file's own experiment.
        where: Passed to some runs.
        pairs: (method, rival) labels for the verdict. Where the rows are of several experiments, whose equal budgets
            have other ranks, a mapping from an experiment's name to its pairs.
        reference: Label of the row against which every other one is held, such as the linear probe's.
        published: Which rows stand beside which numbers of the paper.
        tuned: Whether rows with a centre take tuned learning rates; false for those of their settings, as at the
            paper's scale, until the command line says `tuned=true`.
        table: The submission's number of the table that it makes, by which it is also found (`table3`).
    """

    experiment: str
    axes: Grids
    seeds: Seeds
    methods: Annotated[tuple[Row, ...], Field(strict=False, min_length=1)]
    tuning: GridRule
    overrides: Names = ()
    where: Annotated[tuple[Where, ...], Field(strict=False)] = ()
    pairs: Pairs | Mapping[str, Pairs] = ()
    reference: str | None = None
    published: Annotated[tuple[PublishedRows, ...], Field(strict=False)] = ()
    tuned: bool = True
    table: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> ComparisonFile:
        if self.tuning.seed in self.seeds:
            raise ValueError(f"tuning.seed={self.tuning.seed} is a seed of the comparison; accepted: any other")
        if len({tuple(grid) for grid in self.axes}) > 1:
            raise ValueError(f"axes: {' and '.join(', '.join(grid) for grid in self.axes)}; accepted: the same in each")
        stated = [(f"where.at.{axis}", axis, value) for where in self.where for axis, value in where.at.items()]
        stated += [
            (f"methods.only.{axis}", axis, value)
            for row in self.methods
            for axis, values in row.only.items()
            for value in values
        ]
        for key, axis, value in stated:
            known = self.values(axis)
            if value not in known:
                accepted = ", ".join(map(str, known)) or f"an axis of {', '.join(self.axes[0])}"
                raise ValueError(f"{key}={value}; accepted: {accepted}")
        return self

    def pairs_of(self, experiment: str) -> tuple[tuple[str, str], ...]:
        """The (method, rival) labels that are held against each other among an experiment's runs."""
        return self.pairs.get(experiment, ()) if isinstance(self.pairs, Mapping) else self.pairs

    def values(self, axis: str) -> list[Any]:
        """All values that its runs have on an axis."""
        grids = [*self.axes, *(grid for row in self.methods for grid in row.axes or ())]
        return list(dict.fromkeys(value for grid in grids for value in grid.get(axis, ())))


@dataclass(frozen=True)
class Comparison:
    """A comparison that is about to be run, narrowed and overridden by the command line.

    Attributes:
        path: The file.
        file: What it states.
        overrides: Of the command line, after all others.
        axes: Values that the command line gives in place of the file's.
        seeds: Seeds that the command line gives, or the file's.
        tuned: Whether the command line asks for tuned learning rates where the file does not.
    """

    path: Path
    file: ComparisonFile
    overrides: tuple[str, ...]
    axes: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    tuned: bool = False

    @property
    def name(self) -> str:
        """Its name in records and results: the file's, and the scale where it has one, such as "figure3_mini"."""
        scale = scale_of(self.path)
        return self.path.stem if scale is None else f"{self.path.stem}_{scale}"

    def describe(self) -> str:
        """One line: which file it is, and at which scale."""
        scale = scale_of(self.path)
        at = "" if scale is None else f" at scale {scale}"
        return f"{self.path.stem}{at}: {self.path.relative_to(self.path.parents[2 if scale is None else 3])}"

    @property
    def is_narrowed(self) -> bool:
        """Whether the command line asks for other seeds, values on axes or learning rates than the file."""
        return bool(self.axes) or self.seeds != self.file.seeds or (self.tuned and not self.file.tuned)

    def experiments(self, known: Experiment | None = None) -> dict[str, Experiment]:
        """The experiments whose runs it has, by name; `known` need not be looked up."""
        names = dict.fromkeys([self.file.experiment, *(row.experiment for row in self.file.methods if row.experiment)])
        return {name: known if known and known.name == name else find_experiment(name) for name in names}

    def runs(self, experiment: str, seeds: Iterable[int] | None = None) -> list[tuple[Row, tuple[str, ...]]]:
        """The rows and overrides of all runs of one experiment: column by column, row by row, seed by seed.

        Args:
            experiment: Its name.
            seeds: Seeds in place of the comparison's.
        """
        rows = [row for row in self.file.methods if (row.experiment or self.file.experiment) == experiment]
        points = [self._points(row) for row in rows]
        found = []
        for at in dict.fromkeys(itertools.chain(*points)):
            for row, own in zip(rows, points, strict=True):
                if at in own:
                    shared = self._overrides(row, dict(at))
                    found += [(row, (*shared, f"seed={seed}")) for seed in seeds or self.seeds]
        return found

    def _points(self, row: Row) -> dict[tuple[tuple[str, Any], ...], None]:
        """Where a row stands, in order: values on axes."""
        found: dict[tuple[tuple[str, Any], ...], None] = {}
        for grid in self._grids(row):
            choices = [[value for value in grid[axis] if value in row.only.get(axis, (value,))] for axis in grid]
            found |= dict.fromkeys(tuple(zip(grid, values, strict=True)) for values in itertools.product(*choices))
        return found

    def _grids(self, row: Row) -> list[dict[str, tuple[Any, ...]]]:
        """The command line's values replace the file's where that has one grid; they choose among those of several."""
        if len(self.file.axes) == 1 and not any(other.axes for other in self.file.methods):
            return [{**self.file.axes[0], **self.axes}]
        return [
            {axis: tuple(value for value in grid[axis] if value in self.axes.get(axis, (value,))) for axis in grid}
            for grid in row.axes or self.file.axes
        ]

    def _overrides(self, row: Row, at: Mapping[str, Any]) -> tuple[str, ...]:
        own = [where for where in self.file.where if where.at.items() <= at.items()]
        special = [text for where in own for text in where.overrides]
        shared = self.file.overrides if row.experiment in (None, self.file.experiment) else ()
        position = [f"{axis}={_quoted(value)}" for axis, value in at.items()]
        return (*shared, *special, *self._rate(row), *self.overrides, *row.overrides, *position)

    def _rate(self, row: Row) -> list[str]:
        """What makes a row take a tuned learning rate: that of the settings it names, else of its own."""
        takes_tuned = self.file.tuned or (self.tuned and row.centre is not None)
        if not takes_tuned or (row.tuned_on is None and self.file.tuned):
            return []
        chosen = f"training.rate_from=[{','.join(map(_quoted, row.tuned_on or ()))}]"
        return [chosen] if self.file.tuned else ["training.learning_rate=null", chosen]


def load_comparison(
    name: str,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    axes: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] | None = None,
    tuned: bool = False,
    configs: Path = CONFIGS,
) -> Comparison:
    """Reads a comparison file.

    Args:
        name: Its name, as `find_comparison` takes it.
        scale: paper, mini or demo; None for the first at which there is a file of this name.
        overrides: Overrides of the command line, after the file's.
        axes: Values in place of the file's.
        seeds: Seeds in place of the file's.
        tuned: Take tuned learning rates also where the file does not.
        configs: The configuration tree.

    Raises:
        ValueError: No such file, a file with unknown or missing keys, or an override of what the comparison varies; the
            message names what is accepted.
    """
    path = find_comparison(name, scale, configs)
    file = validated(ComparisonFile, _read(path, configs), where=path.name)
    _check_overrides(file, overrides)
    chosen = {axis: tuple(values) for axis, values in (axes or {}).items() if values}
    for axis, values in chosen.items():
        known = file.values(axis)
        if not known:
            raise ValueError(f"{option_of(axis)}: this comparison does not vary it; accepted: {axis}=VALUE")
        for value in values:
            if len(file.axes) > 1 and value not in known:
                raise ValueError(f"{option_of(axis)} {_quoted(value)}; accepted: {', '.join(map(_quoted, known))}")
    comparison = Comparison(path, file, tuple(overrides), chosen, tuple(seeds or file.seeds), tuned)
    if file.tuning.seed in comparison.seeds:
        raise ValueError(f"tuning.seed={file.tuning.seed} is a seed of the comparison; accepted: any other")
    return comparison


def _read(path: Path, configs: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file states, over what the file that it is like states; `readers` are the files that are like this one."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not (like := values.pop("like", None)):
        return values
    try:
        other = find_comparison(like, None, configs)
        if other in (path, *readers):
            raise ValueError
    except ValueError:
        raise ValueError(f"{path.name}: like={like!r}; accepted: {', '.join(comparison_names(configs))}") from None
    return _read(other, configs, (path, *readers)) | values


def _check_overrides(file: ComparisonFile, overrides: Sequence[str]) -> None:
    """Refuses overrides of the command line that would change what the comparison varies, or nothing at all."""
    varied = {"seed": "--seeds NUMBER ...", "adapter": "--methods LABEL ..."}
    varied |= {axis: f"{option_of(axis)} VALUE ..." for axis in file.axes[0]}
    by_rows = {_key(text) for row in file.methods for text in row.overrides}
    for text in overrides:
        if option := varied.get(_key(text)):
            raise ValueError(f"{text}: every run of a comparison has its own; accepted: {option}")
        if _key(text) in by_rows:
            raise ValueError(f"{text}: the comparison's rows say their own; accepted: settings that no row names")


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _quoted(value: Any) -> str:
    """A value as Hydra's grammar takes it back unchanged; text that could be anything but a plain name is quoted."""
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value)
    if re.fullmatch(r"[A-Za-z_][\w.-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    doubled = re.sub(r"(\\+)('|$)", r"\1\1\2", value)  # before a quote a backslash escapes, elsewhere it is one
    return "'" + doubled.replace("'", "\\'") + "'"


def option_of(axis: str) -> str:
    """The command line's option for an axis: --datasets, --shots."""
    return f"--{axis.removesuffix('s')}s"


def select(values: Sequence[str], chosen: Collection[str] | None, what: str) -> tuple[str, ...]:
    """The chosen ones among `values`, in the order of `values`; all of them for None.

    Raises:
        ValueError: A chosen value is none of `values`.
    """
    for value in chosen or ():
        if value not in values:
            raise ValueError(f"unknown {what} {value!r}; accepted: {', '.join(values)}")
    return tuple(value for value in values if chosen is None or value in chosen)
