"""The notes under a comparison's tables: what a reader must know about the numbers, from the records alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from randlora_core.experiment.records.reading import Record, backbone_of, hardware_of, label_of
from randlora_core.experiment.reports.results import Cell, Results


def make_notes(results: Results) -> Iterable[str]:
    """The notes, one sentence or two each."""
    records = results.records()
    if missing := results.num_missing:
        yield f"{missing} of {results.num_expected} runs are not there; their cells are '-' or say so."
    if not records:
        return
    yield _setting_note(results)
    yield from _rate_notes(results)
    yield from dict.fromkeys(remark for record in records for remark in record["data"]["remarks"])
    counters = sorted({record["memory"]["counter"] for record in records})
    yield (
        f"Peak memory: {', '.join(counters)}; in tables of single points the largest over seeds, beside the median "
        "training time; elsewhere the means."
    )
    for record in records:
        if record["solution"] is not None and not record["solution"]["converged"]:
            yield f"Not converged: {label_of(record['config'])}, run {record['run_id']}."
    machines = sorted({hardware_of(record) for record in records})
    warning = " Seconds and memory of different machines are not comparable." if len(machines) > 1 else ""
    if any(cell.machine is None for cell in results.cells.values()):
        warning += " They are '-' where the seeds of a row ran on several."
    yield f"Hardware: {'; '.join(machines)}.{warning}"
    yield f"Code: commit {', '.join(sorted({_commit(record) for record in records}))}."


def _setting_note(results: Results) -> str:
    """Backbones, and how long the trained methods were trained on what."""
    records = results.records()
    points: dict[str, dict[str, None]] = {}
    for (_, point), cell in results.cells.items():
        for record in cell.runs:
            if record["learning_rate"]["value"] is not None:
                points.setdefault(_length(record), {})[results.title(point)] = None
    lengths = [f"{', '.join(titles)} {length}" if len(points) > 1 else length for length, titles in points.items()]
    training = "; ".join(lengths) or "none"
    backbones = ", ".join(sorted({backbone_of(record["config"]) for record in records}))
    return f"Backbone {backbones}; training: {training}; whole test sets unless said otherwise."


def _length(record: Record) -> str:
    training = record["config"]["training"]
    length = f"{training['steps']} steps" if training["steps"] else f"{training['epochs']} epochs"
    return f"{length} of {training['batch_size']} in {training['precision']}"


def _rate_notes(results: Results) -> Iterable[str]:
    """Where the learning rates come from, which decides how far a comparison can be trusted."""
    cells = [(key, cell) for key, cell in results.cells.items() if cell.learning_rate["value"] is not None]
    tuned = [cell for _, cell in cells if cell.learning_rate["grid"]]
    if tuned:
        sizes = sorted({len(cell.learning_rate["grid"]) for cell in tuned})
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        yield f"LR (learning rate): chosen per method on the validation split from {span} values."
    others: dict[str, dict[str, list[str]]] = {}
    for (method, point), cell in cells:
        if (rate := cell.learning_rate)["source"] != "tuned":
            known = rate["tuned_for"]
            otherwise = f"tuned for {' '.join(known)}" if known else "not tuned for these settings"
            others.setdefault(otherwise, {}).setdefault(method, []).append(results.title(point))
    for origin, where in others.items():
        names = [_where(method, titles, cells) for method, titles in where.items()]
        yield f"* Learning rate {origin}: {', '.join(names)}."


def _where(method: str, titles: Sequence[str], cells: Sequence[tuple[tuple[str, Any], Cell]]) -> str:
    """A method, and the points that are meant if they are not all of its points."""
    count = sum(label == method for (label, _), _ in cells)
    return method if len(titles) == count else f"{method} on {', '.join(titles)}"


def _commit(record: Record) -> str:
    provenance = record["provenance"]
    commit = (provenance["commit"] or "unknown")[:12]
    return f"{commit} with uncommitted changes" if provenance["dirty"] else commit
