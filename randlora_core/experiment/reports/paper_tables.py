"""The paper's numbers beside ours: paper | ours | gap for scores, and ratios for time and memory.

A number of ours stands in such a table only where the run's backbone, its weights and the sizes of the data set's
splits are the paper's, as the record itself tells; the label of a row decides nothing. What else must be, an experiment
says by its `paper_scores`; those on images take `image_scores`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from randlora_core.datasets.catalog import CATALOG
from randlora_core.experiment.interface import Experiment
from randlora_core.experiment.records.reading import Record
from randlora_core.experiment.reports.formats import MISSING, TextTable
from randlora_core.experiment.reports.published import (
    ACCURACY,
    AVERAGE,
    TRAINING_SETS,
    VRAM,
    Amount,
    PublishedNumber,
    PublishedRows,
)
from randlora_core.experiment.reports.results import CostGroup, Point, Results
from randlora_core.experiment.reports.statistics import Summary
from randlora_core.experiment.reports.tables import format_megabytes, format_seconds
from randlora_core.models.registry import BACKBONES

PAPER_BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "CLIP ViT-B/32": {"name": "clip_vit_b32", "pretrained": True},
    "CLIP ViT-L/14": {"name": "clip_vit_l14", "pretrained": True},
    "CLIP ViT-H/14": {"name": "clip_vit_h14", "pretrained": True},
    "DINOv2 ViT-B/14": {"name": "dinov2_vit_b14", "pretrained": True, "image_size": 224},
    "Qwen2-0.5B": {"name": "qwen2_05b", "pretrained": True, "dtype": "float32", "quantize": None},
    "Phi-3-mini": {"name": "phi3_mini", "pretrained": True, "dtype": "float32", "quantize": None},
    "Llama-3-8B": {"name": "llama3_8b", "pretrained": True, "dtype": "bfloat16", "quantize": None},
}
"""The paper's name of a model -> the whole setting `backbone` of a run on it."""

CSV_COLUMNS = (
    *("experiment", "file", "model", "shots", "fraction", "training_set"),
    *("method", "dataset", "paper", "ours", "gap"),
)


@dataclass(frozen=True)
class PaperCell:
    """One number of the paper and ours of the same meaning.

    Attributes:
        file: The file of the paper's number.
        label: The row of the comparison.
        number: The paper's number.
        ours: Percent; None where there is no run, or it is not one that can be compared.
    """

    file: str
    label: str
    number: PublishedNumber
    ours: float | None

    @property
    def gap(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.ours is None else self.ours - self.number.value

    @property
    def amount(self) -> Amount:
        """What it was trained on, see `PublishedNumber.amount`."""
        return self.number.amount


def paper_cells(results: Results, published: Sequence[PublishedRows]) -> list[PaperCell]:
    """The paper's scores for a comparison's rows, backbones and data sizes, with ours where they are comparable."""
    ours = _comparable_scores(results)
    backbones = {results.value(point, "backbone") for point in results.points}
    amounts = {_amount(results, point) for point in results.points}
    cells = []
    for entry in published:
        if entry.table.quantity != ACCURACY:
            continue
        for label in results.methods:
            for number in entry.numbers(label):
                model, amount = number.model, number.amount
                if _backbone(model) not in backbones or amount not in amounts:
                    continue
                wanted = entry.table.datasets_of(number) if number.dataset == AVERAGE else (number.dataset,)
                found = [ours.get((label, model, amount, dataset)) for dataset in wanted]
                value = None if None in found else sum(found) / len(found)
                cells.append(PaperCell(entry.file, label, number, value))
    return cells


def _comparable_scores(results: Results) -> dict[tuple[str, str, Amount, str], float]:
    """(label, model, amount, data set) -> percent, for the cells whose every run is on what the paper's are.

    Where two cells are on the same, such as one data set under two names, there is none.
    """
    paper_scores = results.experiment.paper_scores or image_scores
    found: dict[tuple[str, str, Amount, str], list[float]] = {}
    for (label, point), cell in results.cells.items():
        runs = [paper_scores(results.experiment, record) for record in cell.runs]
        for model, dataset in set.intersection(*map(set, runs)):
            mean = sum(scores[model, dataset] for scores in runs) / len(runs)
            found.setdefault((label, model, _amount(results, point), dataset), []).append(100 * mean)
    return {key: values[0] for key, values in found.items() if len(values) == 1}


def _amount(results: Results, point: Point) -> Amount | None:
    """What runs at a point are trained on, as `PublishedNumber.amount` has it."""
    return results.amount(point) or results.value(point, "dataset")


def image_scores(experiment: Experiment, record: Record) -> dict[tuple[str, str], float]:
    """The `paper_scores` of an experiment on images: one score, or none where it is not to be compared."""
    case, score = paper_case(record), record["scores"]["mean"]
    return {} if case is None or score is None else {case: score}


def paper_case(record: Record) -> tuple[str, str] | None:
    """The model and the data set, by their names in the paper, that a record's numbers can be compared on.

    None where one of these is not the paper's: the backbone with all its settings; the weights, which come from the
    repository that the paper's were published in; the sizes of the splits, which the data set's loader compared with
    the paper's table 7 (`data.is_subset`) and which are compared once more with what the record says of them.
    """
    data, model = record["data"], paper_model(record)
    if model is None or data.get("paper_name") is None or data.get("is_subset") is not False:
        return None
    return (model, data["paper_name"]) if _has_paper_sizes(record) else None


def paper_model(record: Record) -> str | None:
    """A record's model by its name in the paper; None where its settings or the source of its weights are others."""
    backbone, weights = record["config"]["backbone"], record["identity"]["weights"]
    model = next((model for model, known in PAPER_BACKBONES.items() if known == backbone), None)
    return model if model is not None and weights.startswith(f"{_weights_source(model)}@") else None


@functools.cache
def _weights_source(model: str) -> str:
    """Where a model's published weights come from, as the identity of weights begins: "hub owner/repository"."""
    return str(BACKBONES[PAPER_BACKBONES[model]["name"]].find_weights())


def _has_paper_sizes(record: Record) -> bool:
    """Whether the splits have table 7's sizes; of chosen training images the number is not known beforehand."""
    data, config = record["data"], record["config"]
    entry = next((entry for entry in CATALOG.values() if entry.paper_name == data["paper_name"]), None)
    if entry is None:
        return False
    wanted = {"validation": entry.num_validation, "test": entry.num_test}
    if config.get("shots") is None and config.get("fraction") in (None, 1):
        wanted["train"] = entry.num_train_and_validation - entry.num_validation
    return all(data["sizes"].get(split) == size for split, size in wanted.items())


def _backbone(model: str) -> str | None:
    """Our name of a model of the paper; None for one that no experiment has."""
    return PAPER_BACKBONES[model]["name"] if model in PAPER_BACKBONES else None


def paper_tables(results: Results, cells: Sequence[PaperCell]) -> list[TextTable]:
    """For every model the averages by data size, then for every data size the data sets, as in the paper's appendix."""
    tables = []
    for model, file in dict.fromkeys((cell.number.model, cell.file) for cell in cells):
        own = [cell for cell in cells if (cell.number.model, cell.file) == (model, file)]
        amounts = sorted({cell.amount for cell in own}, key=amount_order)
        averages = {_describe(results, amount): (amount, AVERAGE) for amount in amounts}
        tables.append(_triples(f"{model}, average over data sets", file, own, averages))
        for amount in amounts:
            datasets = dict.fromkeys(cell.number.dataset for cell in own if cell.amount == amount)
            if set(datasets) != {AVERAGE}:
                columns = {name if name != AVERAGE else "Average": (amount, name) for name in datasets}
                tables.append(_triples(f"{model}, {_describe(results, amount)}", file, own, columns))
    return tables


def amount_order(amount: Amount) -> tuple[bool, float]:
    """Sorts data sizes: 1, 2, 4, 16 shots, then 50 %, then 100 %; and the training sets of language models."""
    if isinstance(amount, str):
        return True, list(TRAINING_SETS.values()).index(amount)
    shots, fraction = amount
    return (False, shots) if shots is not None else (True, fraction or 0.0)


def _describe(results: Results, amount: Amount) -> str:
    """A data size, or a training set, in a few words."""
    return amount if isinstance(amount, str) else results.describe_amount(amount)


def _triples(title: str, file: str, cells: Sequence[PaperCell], columns: Mapping[str, tuple[Amount, str]]) -> TextTable:
    """Three rows for every method: the paper's number as printed, ours and the gap."""
    found = {(cell.label, cell.amount, cell.number.dataset): cell for cell in cells}
    rows = []
    for label in dict.fromkeys(cell.label for cell in cells):
        own = [found.get((label, *place)) for place in columns.values()]
        paper = [MISSING if cell is None else cell.number.columns[ACCURACY] for cell in own]
        ours = [MISSING if cell is None or cell.ours is None else f"{cell.ours:.1f}" for cell in own]
        gaps = [MISSING if cell is None or cell.gap is None else f"{cell.gap:+.1f}" for cell in own]
        rows += [(label, "paper", *paper), ("", "ours", *ours), ("", "gap", *gaps)]
    title = f"{title}: accuracy in % of the paper (published/{file}), ours, and the gap in points"
    return TextTable(title, ("Method", "", *columns), tuple(rows), num_labels=2)


def paper_csv_rows(results: Results, cells: Iterable[PaperCell]) -> Iterable[Sequence[object]]:
    """One row of `CSV_COLUMNS` per number of the paper; None where there is none of ours."""
    for cell in cells:
        number = cell.number
        place = (results.experiment.name, cell.file, number.model, number.shots, number.fraction, number.training_set)
        yield (*place, cell.label, number.dataset, number.value, cell.ours, cell.gap)


def cost_tables(results: Results, published: Sequence[PublishedRows]) -> list[TextTable]:
    """Training time and peak memory of every method on every backbone, with their ratios to one method's.

    Beside them stands the paper's memory in GB with its ratio to the same method's. That is full fine-tuning, or where
    it is no row of the comparison the first row whose memory the paper has. Machine, batch and counter are not the
    paper's, so only the ratios can be compared. Runs of different machines are never averaged, nor held against each
    other: each machine has a table of its own.
    """
    tables = []
    for group in results.cost_groups:
        entries = [entry for entry in published if entry.table.quantity == VRAM]
        found = {label: _vram(entries, label, group.backbone) for label in group.methods}
        vram = {label: value for label, value in found.items() if value is not None}
        if vram or len(group.points) > 1:  # one point's own table has all of it
            tables.append(_cost_table(results, group, vram))
    return tables


def _vram(entries: Sequence[PublishedRows], label: str, backbone: str | None) -> float | None:
    """The paper's GB for a row; None where it has none."""
    numbers = (number for entry in entries for number in entry.numbers(label))
    return next((number.value for number in numbers if _backbone(number.model) == backbone), None)


def _cost_table(results: Results, group: CostGroup, vram: Mapping[str, float]) -> TextTable:
    """The costs of one machine; the ratios, behind each quantity, only where there is a row to divide by."""
    full = (method for method in group.methods if results.families[method] == "full")
    base = next(iter((*full, *vram)), None)
    name = "full" if base is not None and results.families[base] == "full" else base
    seconds = {method: _mean(results.train_seconds(method, group.points)) for method in group.methods}
    peaks = {method: _mean(results.peak_bytes(method, group.points)) for method in group.methods}
    quantities = [
        ("Train s", f"/ {name}", seconds, format_seconds),
        ("Peak MB", f"/ {name}", peaks, format_megabytes),
    ]
    title = f"{group.backbone or 'All runs'}: mean training time and peak memory over {len(group.points)} points"
    if len(group.points) < len(results.points):
        title += f" ({'; '.join(results.title(point) for point in group.points)})"
    if group.machine is not None and len(results.machines(results.points)) > 1:
        title += f", on {group.machine}"
    if vram:
        quantities.append(("Paper GB", f"Paper / {name}", vram, _format_gigabytes))
        title += (
            f"; the paper's GB are of another machine and counter, so that only the ratios to {name} can be compared"
        )
    columns = [("Method", *group.methods)]
    for heading, ratio, values, form in quantities:
        columns.append((heading, *(form(values.get(method)) for method in group.methods)))
        if base is not None:
            divided = (format_ratio(values.get(method), values.get(base)) for method in group.methods)
            columns.append((ratio, *divided))
    headings, *rows = zip(*columns, strict=True)
    return TextTable(title, headings, tuple(rows))


def _mean(summary: Summary | None) -> float | None:
    return None if summary is None else summary.mean


def _format_gigabytes(value: float | None) -> str:
    return MISSING if value is None else f"{value:g}"


def format_ratio(value: float | None, base: float | None) -> str:
    """`value` / `base` to two decimals."""
    return MISSING if value is None or not base else f"{value / base:.2f}"
