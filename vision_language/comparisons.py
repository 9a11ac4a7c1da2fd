"""Comparison files: which methods, datasets and seeds stand in one table.

A file `configs/comparison/<name>.yaml` holds what the comparison varies; everything else is the run's own Hydra config,
to which the file's and the command line's overrides are passed. With `like: <name>` a file states only what differs
from another one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from randlora_core.experiment.config import from_dict

COMPARISON_FOLDER = Path(__file__).resolve().parents[1] / "configs" / "comparison"
RECORDS_FOLDER = Path(__file__).resolve().parent / "records"
PRELOAD = ("torch", "open_clip", "accelerate", "hydra", "sklearn.datasets", "vision_language.train")
"""What a sweep's server imports before it forks; importing these runs no torch kernel."""

VARIED = {"dataset": "--datasets NAME ...", "seed": "--seeds NUMBER ...", "adapter": "--methods LABEL ..."}
"""What a comparison varies, and the option that narrows it."""


@dataclass(frozen=True)
class MethodEntry:
    """One row of a comparison.

    Attributes:
        overrides: What makes a run of this method, such as `adapter=lora adapter.rank=4`.
        seeds: Seeds of this row where they are not the comparison's: one for a method without randomness.
        centre: Middle of the learning-rate grid; null for a method that trains nothing.
    """

    overrides: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    centre: float | None = None


@dataclass(frozen=True)
class TuningPlan:
    """How learning rates are chosen.

    Attributes:
        seed: Seed of the tuning runs; none of the comparison's.
        num_values: Values in every method's first grid.
        limit: Values per method after which a grid is widened no more.
    """

    seed: int
    num_values: int = 7
    limit: int = 13


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison as its file states it.

    Attributes:
        datasets: Names, in the order of the columns.
        seeds: Seeds of every row that has none of its own.
        methods: Rows, in order.
        tuning: How learning rates are chosen.
        overrides: Passed to every run.
        by_dataset: Passed to the runs on one dataset, after `overrides`.
        extra: Overrides of the command line, after all others.
        pairs: (method, rival) labels for the verdict.
    """

    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    methods: tuple[MethodEntry, ...]
    tuning: TuningPlan
    overrides: tuple[str, ...] = ()
    by_dataset: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    pairs: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        seeds = {*self.seeds, *(seed for method in self.methods for seed in method.seeds or ())}
        if self.tuning.seed in seeds:
            raise ValueError(f"tuning.seed={self.tuning.seed} is a seed of the comparison; accepted: any other")
        for pair in self.pairs:
            if len(pair) != 2:
                raise ValueError(f"pairs holds {list(pair)}; accepted: [method, rival]")

    def shared_overrides(self, method: MethodEntry, dataset: str) -> tuple[str, ...]:
        """What the runs of one method on one dataset have in common."""
        own = self.by_dataset.get(dataset, ())
        return (*self.overrides, *own, *self.extra, *method.overrides, f"dataset={dataset}")

    def run_overrides(self) -> list[tuple[str, ...]]:
        """The overrides of every run: dataset by dataset, method by method, seed by seed."""
        return [
            (*self.shared_overrides(method, dataset), f"seed={seed}")
            for dataset in self.datasets
            for method in self.methods
            for seed in method.seeds or self.seeds
        ]


def load_comparison(
    name: str,
    *,
    overrides: Sequence[str] = (),
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> ComparisonPlan:
    """Reads `configs/comparison/<name>.yaml`.

    Args:
        name: The file's name without its ending.
        overrides: Overrides of the command line, after the file's.
        datasets: Datasets in place of the file's.
        seeds: Seeds in place of the file's, except for methods that have their own.

    Raises:
        ValueError: No such file, a file with unknown or missing keys, or an override of what the comparison varies; the
            message names what is accepted.
    """
    for text in overrides:
        if option := VARIED.get(text.partition("=")[0]):
            raise ValueError(f"{text}: every run of a comparison has its own; accepted: {option}")
    path = COMPARISON_FOLDER / f"{name}.yaml"
    known = sorted(file.stem for file in COMPARISON_FOLDER.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"unknown comparison {name!r}; accepted: {', '.join(known)}")
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if like := values.pop("like", None):
        values = OmegaConf.to_container(OmegaConf.load(COMPARISON_FOLDER / f"{like}.yaml"), resolve=True) | values
    plan = from_dict(ComparisonPlan, values, where=path.name)
    for dataset in plan.by_dataset:
        if dataset not in plan.datasets:
            raise ValueError(f"{path.name}: by_dataset.{dataset}: accepted: {', '.join(plan.datasets)}")
    return replace(
        plan,
        extra=tuple(overrides),
        datasets=tuple(datasets or plan.datasets),
        seeds=tuple(seeds or plan.seeds),
    )


def select(values: Sequence[str], chosen: Collection[str] | None, what: str) -> tuple[str, ...]:
    """The chosen ones among `values`, in the order of `values`; all of them for None.

    Raises:
        ValueError: A chosen value is none of `values`.
    """
    for value in chosen or ():
        if value not in values:
            raise ValueError(f"unknown {what} {value!r}; accepted: {', '.join(values)}")
    return tuple(value for value in values if chosen is None or value in chosen)


def identify(overrides: Sequence[str]) -> dict[str, Any]:
    """Identity of the run that `overrides` mean, as a sweep needs it; trains nothing.

    Raises:
        ValueError: Bad input; one line that names the value and the accepted ones.
    """
    from vision_language.train import plan

    planned = plan(overrides)
    identity = {"run_id": planned.run_id, "config": dict(planned.recorded), "path": str(planned.path)}
    return {**identity, "complete": planned.finished is not None}


def run(overrides: Sequence[str], on_progress: Any = None) -> dict[str, Any]:
    """One run; see `vision_language.train.run`, which is imported in the child only."""
    from vision_language import train

    return train.run(overrides, on_progress=on_progress)
