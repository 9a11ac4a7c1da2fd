"""A comparison's own tables: the scores, everything about a point, time and memory, and all numbers for a CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from randlora_core.experiment.reports.formats import MARKS, MISSING, TextTable
from randlora_core.experiment.reports.results import Cell, Point, Results
from randlora_core.experiment.reports.statistics import Summary

Best = Mapping[tuple[Point, ...], str]
"""Scope -> the method whose score is marked there (`pairs.best_methods`)."""

SCORES = "test accuracy in %, mean ± 95 % interval over seeds"
ALL_SCORES = SCORES.capitalize()

CSV_COLUMNS = (
    "experiment",
    "data",
    "method",
    "test_set",
    "score_mean",
    "score_half_width_95",
    "score_std",
    "runs",
    "is_significantly_best",
    "trainable_parameters",
    "learning_rate",
    "learning_rate_source",
    "train_seconds_median",
    "peak_memory_bytes",
)


def format_score(summary: Summary | None) -> str:
    """Percent with the half width of the interval: `91.2 ± 0.4`, `91.2` for one run, `-` for none."""
    if summary is None:
        return MISSING
    mean = f"{100 * summary.mean:.1f}"
    return mean if summary.half_width is None else f"{mean} ± {100 * summary.half_width:.1f}"


def overview_tables(results: Results, best: Best | None = None) -> list[TextTable]:
    """The scores alone, the best one of a column marked where it is significantly above the second best.

    Points with several test sets have a table each, with a column for every set. Else there is a table for every
    setting, with a column for every point of it and their average, after a table of the averages where there are
    several of them; where settings have one point each, all points share one table.
    """
    best = best or {}
    if any(len(results.test_sets(point)) > 1 for point in results.points):
        return [_test_sets_table(results, point, best) for point in results.points]
    averages = [(results.setting_title(points), points) for points in results.settings if len(points) > 1]
    if not averages:
        return [
            _scores_table(results, ALL_SCORES, [(results.title(point), (point,)) for point in results.points], best)
        ]
    tables = [_scores_table(results, f"Average over data sets: {SCORES}", averages, best)] if averages[1:] else []
    for points in results.settings:
        where = results.setting_title(points)
        title = f"{where}: {SCORES}" if where else ALL_SCORES
        columns = [(results.experiment.axes[0].describe(point[0]), (point,)) for point in points]
        average = [("Average", points)] if len(points) > 1 else []
        tables.append(_scores_table(results, title, [*columns, *average], best))
    return tables


def _scores_table(
    results: Results, title: str, columns: Sequence[tuple[str, tuple[Point, ...]]], best: Best
) -> TextTable:
    """The scores of every method in the scope of every column, which comes with its heading."""
    scopes = [scope for _, scope in columns]
    methods = results.methods_at(point for scope in scopes for point in scope)
    rows = [(method, *(format_score(results.score(method, scope)) for scope in scopes)) for method in methods]
    marked = {(methods.index(best[scope]), 1 + i) for i, scope in enumerate(scopes) if scope in best}
    return TextTable(title, ("Method", *(heading for heading, _ in columns)), tuple(rows), frozenset(marked))


def _test_sets_table(results: Results, point: Point, best: Best) -> TextTable:
    test_sets, methods = results.test_sets(point), results.methods_at([point])
    rows = []
    for method in methods:
        cell = results.cell(method, point)
        scores = [cell.score(name) if cell else None for name in test_sets]
        rows.append((method, *map(format_score, scores), format_score(cell.mean if cell else None)))
    mean = len(test_sets) + 1
    marked = {(methods.index(best[point,]), mean)} if (point,) in best else ()
    title = f"{results.title(point)}: {SCORES}"
    return TextTable(title, ("Method", *test_sets, "Mean"), tuple(rows), frozenset(marked))


def point_table(results: Results, point: Point, verdicts: Mapping[str, str] | None = None) -> TextTable:
    """All that is known about the methods at one point.

    Where they were measured on several machines, a raised letter at time and memory tells which, and the title names
    them; the letters of one table say nothing of another's.

    Args:
        results: The numbers.
        point: The point.
        verdicts: Method -> how it stands against the comparison's reference, for a last column; None for no column.
    """
    columns = ("Method", "Accuracy %", "Std", "Runs", "Trainable", "LR", "Train s", "Peak MB")
    marks = _machine_marks(results.machines([point]))
    rows = [_point_row(results, method, point, marks) for method in results.methods_at([point])]
    if verdicts is not None:
        columns = (*columns, "Against reference")
        rows = [(*row, verdicts.get(row[0], MISSING)) for row in rows]
    machines = "; ".join(f"{mark} {machine}" for machine, mark in marks.items())
    title = results.title(point) + (f" (Train s and Peak MB: {machines})" if marks else "")
    return TextTable(title, columns, tuple(rows))


def _machine_marks(machines: Sequence[str]) -> dict[str, str]:
    """Machine -> its mark; none where there is only one."""
    letters = list(MARKS)
    marks = [letters[index % len(letters)] * (1 + index // len(letters)) for index in range(len(machines))]
    return dict(zip(machines, marks, strict=True)) if len(machines) > 1 else {}


def _point_row(results: Results, method: str, point: Point, marks: Mapping[str, str]) -> tuple[str, ...]:
    cell = results.cell(method, point)
    expected = len(results.expected[method, point])
    if cell is None:
        return (method, MISSING, MISSING, f"0 of {expected}", *[MISSING] * 4)
    count = len(cell.runs)
    std = None if cell.mean is None else cell.mean.std
    costs = format_seconds(cell.train_seconds), format_megabytes(cell.peak_bytes)
    return (
        method,
        format_score(cell.mean),
        MISSING if std is None else f"{100 * std:.1f}",
        str(count) if expected == count else f"{count} of {expected}",
        f"{cell.trainable:,}",
        _format_rate(cell),
        *(text if text == MISSING else text + marks.get(cell.machine, "") for text in costs),
    )


def _format_rate(cell: Cell) -> str:
    rate = cell.learning_rate
    if rate["value"] is None:
        return MISSING
    return f"{rate['value']:g}" + ("" if rate["source"] == "tuned" else "*")


def format_seconds(seconds: float | None) -> str:
    """Seconds to a tenth."""
    return MISSING if seconds is None else f"{seconds:.1f}"


def format_megabytes(count: float | None) -> str:
    """Bytes as millions."""
    return MISSING if count is None else f"{count / 1e6:,.0f}"


def csv_rows(results: Results, best: Best) -> Iterable[Sequence[object]]:
    """One row of `CSV_COLUMNS` per point, method and test set, with unrounded numbers; None where there is none."""
    for point in results.points:
        for method in results.methods_at([point]):
            cell = results.cell(method, point)
            for test_set in results.test_sets(point) or (None,):
                values = _csv_values(cell, test_set, best.get((point,)) == method) if cell else [None] * 10
                yield [results.experiment.name, results.experiment.describe(point), method, test_set, *values]


def _csv_values(cell: Cell, test_set: str, is_best: bool) -> list[object]:
    score, rate = cell.score(test_set), cell.learning_rate
    numbers = [score.mean, score.half_width, score.std, score.count] if score else [None] * 4
    source = None if rate["value"] is None else rate["source"]
    marked = "yes" if is_best else "no"
    return [*numbers, marked, cell.trainable, rate["value"], source, cell.train_seconds, cell.peak_bytes]
