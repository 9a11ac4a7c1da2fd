"""Draws a comparison: accuracy against parameters and against training images, time and memory, and learning rates.

Every figure has its legend beside the panels, error bars are 95 % intervals over seeds, and a method looks the same in
all of them (`style`). A figure is drawn where there is something to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from randlora_core.experiment.reports.formats import MISSING
from randlora_core.experiment.reports.paper_tables import PAPER_BACKBONES, PaperCell, amount_order
from randlora_core.experiment.reports.published import AVERAGE
from randlora_core.experiment.reports.results import DATA_AXES, Point, Results
from randlora_core.experiment.reports.statistics import Summary
from randlora_core.experiment.reports.style import Style, base_colour, styles
from randlora_core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (4.6, 4.2)
LEGEND_INCHES = 2.2
PANELS_IN_A_ROW = 3
LOWEST_PANEL = 0.5
"""Height of a panel of few bars, in heights of the one with the most."""
SINGLE_POINTS = 6
"""Points up to which each has a panel; beyond, a panel shows a setting's average over data sets."""
TITLES = {
    "accuracy": "accuracy against trainable parameters",
    "data": "accuracy against training images",
    "costs": "training time and peak memory",
    "sensitivity": "validation score against learning rate",
}
"""What each figure shows, by its name."""
FARTHEST = 1.5
"""How many heights of a panel below it a line may lie before it is named below it: drawn, it presses all together."""
PAPER_LINE = {"linestyle": (0, (4, 2)), "linewidth": 1.0}


def make_figures(results: Results, paper: Sequence[PaperCell] = ()) -> dict[str, Figure]:
    """The figures for which there are results, by name: accuracy, data, costs, sensitivity.

    Args:
        results: The numbers.
        paper: The paper's numbers, whose averages are drawn as dashed lines.
    """
    figures = {
        "accuracy": accuracy_against_parameters(results),
        "data": accuracy_against_data(results, paper),
        "costs": time_and_memory(results),
        "sensitivity": score_against_rate(results),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, the same bytes for the same figure.

    Raises:
        OSError: It cannot be written; the earlier file of that name is left as it was.
    """
    with atomic_file(path) as part:
        figure.savefig(part, dpi=150, format="png", metadata={"Software": None})


def accuracy_against_parameters(results: Results) -> Figure | None:
    """Test accuracy against trainable parameters on a logarithmic axis.

    A method without a learning rate, such as zero-shot or the converged linear probe, is a dashed line across the
    panel; the ranks of one method are joined by a line.
    """
    if not results.cells:
        return None
    scopes = [(point,) for point in results.points]
    if len(scopes) > SINGLE_POINTS:
        scopes = list(results.settings)
    figure, panels = _panels(len(scopes))
    drawn: dict[str, Any] = {}
    for panel, scope in zip(panels, scopes, strict=True):
        drawn |= _draw_parameters(panel, results, scope)
        panel.set_title(results.scope_title(scope))
    return _with_legend(figure, results, drawn)


def _draw_parameters(panel: Axes, results: Results, scope: Sequence[Point]) -> dict[str, Any]:
    """Draws the methods in one scope and returns their handles for the legend."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    handles: dict[str, Any] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    lines: dict[str, float] = {}
    looks = styles(results)
    for method, style in looks.items():
        score = results.score(method, scope)
        if score is None:
            continue
        cell, mean = results.cell(method, scope[0]), 100 * score.mean
        if cell.trainable == 0 or cell.learning_rate["value"] is None:
            lines[method] = mean
            continue
        curves.setdefault(results.families[method], []).append((cell.trainable, mean))
        handles[method] = panel.errorbar(cell.trainable, mean, yerr=_percent(score), **_looks(style), linestyle="none")
    for family, curve in curves.items():
        panel.plot(*zip(*sorted(curve), strict=True), color=base_colour(family), linewidth=0.8, alpha=0.6, zorder=1)
    lowest, highest = panel.get_ylim() if curves else (0.0, 0.0)
    below = [method for method, mean in lines.items() if curves and mean < lowest - FARTHEST * (highest - lowest)]
    for method in (method for method in lines if method not in below):
        handles[method] = panel.axhline(lines[method], color=looks[method].colour, linestyle="--", linewidth=1.2)
    panel.set_xscale("log")
    sizes = [size for curve in curves.values() for size, _ in curve] or [1]
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(sizes) < 20 * min(sizes) else (1.0,)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())
    told = ", ".join(f"{method} {lines[method]:.1f}" for method in below)
    across = f"trainable parameters\n(below the panel: {told})" if below else "trainable parameters"
    _finish(panel, across, "test accuracy in %")
    return handles


def accuracy_against_data(results: Results, paper: Sequence[PaperCell] = ()) -> Figure | None:
    """Test accuracy, averaged over data sets, against the training images; a panel per backbone and further setting.

    The paper's averages are dashed lines in the colour of their row.
    """
    amounts = sorted({amount for point in results.points if (amount := results.amount(point))}, key=amount_order)
    if not results.cells or len(amounts) < 2:
        return None
    data = [index for index, axis in enumerate(results.experiment.axes) if axis.key in DATA_AXES]
    groups: dict[Point, list[Point]] = {}
    for point in results.points:
        groups.setdefault(tuple(at for i, at in enumerate(point) if i > 0 and i not in data), []).append(point)
    figure, panels = _panels(len(groups))
    drawn: dict[str, Any] = {}
    for panel, (others, points) in zip(panels, groups.items(), strict=True):
        backbone = results.value(points[0], "backbone")
        models = [model for model, known in PAPER_BACKBONES.items() if known["name"] == backbone]
        beside = [cell for cell in paper if cell.number.model in models and cell.number.dataset == AVERAGE]
        drawn |= _draw_amounts(panel, results, points, amounts, beside)
        datasets = len({point[0] for point in points})
        average = f"average of {datasets} data sets" if datasets > 1 else str(points[0][0])
        panel.set_title(", ".join([*(str(other) for other in others if other is not None), average]))
    return _with_legend(figure, results, drawn)


def _draw_amounts(
    panel: Axes, results: Results, points: Sequence[Point], amounts: Sequence[Any], paper: Sequence[PaperCell]
) -> dict[str, Any]:
    """Draws a curve per method over the data sizes; the methods are set apart a little, so that all intervals show."""
    scopes = [[point for point in points if results.amount(point) == amount] for amount in amounts]
    handles: dict[str, Any] = {}
    looks = styles(results)
    for index, (method, style) in enumerate(looks.items()):
        scores = [results.score(method, scope) if scope else None for scope in scopes]
        known = [(place, score) for place, score in enumerate(scores) if score is not None]
        if known:
            shift = 0.24 * (index / max(1, len(looks) - 1) - 0.5)
            values, spread = [100 * score.mean for _, score in known], [_percent(score) for _, score in known]
            places = [place + shift for place, _ in known]
            handles[method] = panel.errorbar(places, values, yerr=spread, **_looks(style), linewidth=1.2)
        published = [(amounts.index(cell.amount), cell.number.value) for cell in paper if cell.label == method]
        if published:
            lines = panel.plot(*zip(*sorted(published), strict=True), color=style.colour, **PAPER_LINE)
            handles.setdefault(f"{method}, paper", lines[0])
    panel.set_xticks(range(len(amounts)), [results.describe_amount(amount) for amount in amounts])
    _finish(panel, "training images", "test accuracy in %")
    return handles


def time_and_memory(results: Results) -> Figure | None:
    """Training time and peak memory as bars, averaged over points; a row of panels for every backbone and machine.

    Panels have axes of their own, and where there are several machines each row names its own.
    """
    groups = [group for group in results.cost_groups if group.machine is not None]
    if not groups:
        return None
    quantities = {"training time in s": (results.train_seconds, 1.0), "peak memory in MB": (results.peak_bytes, 1e-6)}
    most = max(len(group.methods) for group in groups)
    heights = [PANEL_INCHES[1] * max(LOWEST_PANEL, len(group.methods) / most) for group in groups]
    figure = _figure(PANEL_INCHES[0] * len(quantities), sum(heights))
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, group in zip(parts, groups, strict=True):
        if len(results.machines(results.points)) > 1:
            part.suptitle(f"on {group.machine}", fontsize="medium")
        average = f"average of {len(group.points)} points" if group.points[1:] else results.title(group.points[0])
        panels = part.subplots(1, len(quantities))
        for panel, (label, (measure, unit)) in zip(panels, quantities.items(), strict=True):
            _draw_bars(panel, results, {method: measure(method, group.points) for method in group.methods}, unit)
            panel.set_xlabel(label)
            panel.set_title(", ".join(filter(None, (group.backbone, average))))
    return figure


def _draw_bars(panel: Axes, results: Results, values: Mapping[str, Summary | None], unit: float) -> None:
    """A bar per method, and "-" where there is no value."""
    looks = styles(results)
    for place, (method, value) in enumerate(values.items()):
        if value is None:
            panel.text(0, place, f" {MISSING}", verticalalignment="center")
            continue
        bar = {"color": looks[method].colour, "alpha": 0.7, "error_kw": {"capsize": 3, "ecolor": "#222222"}}
        panel.barh(place, unit * value.mean, xerr=unit * (value.half_width or 0.0), **bar)
    panel.set_yticks(range(len(values)), list(values))
    panel.set_ylim(len(values) - 0.4, -0.6)
    panel.set_xlim(left=0)


def score_against_rate(results: Results) -> Figure | None:
    """Validation score against learning rate, a curve per method and a panel for every tuning; one seed, no error bars.

    The chosen learning rate has a large marker; a value whose run failed is a cross on the lower edge.
    """
    tunings: dict[str, list[Point]] = {}
    for point in results.points:
        rates = ((method, results.rates.get((method, point))) for method in results.methods)
        grids = [(method, rate.grid) for method, rate in rates if rate is not None and rate.grid]
        if grids:  # points that share a tuning share its panel
            tunings.setdefault(repr(grids), []).append(point)
    if not tunings:
        return None
    figure, panels = _panels(len(tunings))
    drawn: dict[str, Any] = {}
    for panel, points in zip(panels, tunings.values(), strict=True):
        drawn |= _draw_rates(panel, results, points[0])
        more = f" and {len(points) - 1} more" if len(points) > 1 else ""
        panel.set_title(f"learning rates for {results.title(points[0])}{more}")
    return _with_legend(figure, results, drawn)


def _draw_rates(panel: Axes, results: Results, point: Point) -> dict[str, Any]:
    is_accuracy = results.experiment.criterion == "accuracy"
    handles: dict[str, Any] = {}
    for method, style in styles(results).items():
        rate = results.rates.get((method, point))
        if rate is None or not rate.grid:
            continue
        scores = {entry["value"]: entry["validation"] for entry in rate.grid}
        known = {value: (100 if is_accuracy else 1) * score for value, score in scores.items() if score is not None}
        (handles[method],) = panel.plot(
            list(known), list(known.values()), color=style.colour, marker=style.marker, markersize=4, linewidth=1.2
        )
        if rate.value in known:
            panel.plot(rate.value, known[rate.value], color=style.colour, marker=style.marker, markersize=10, alpha=0.6)
        failed = [value for value, score in scores.items() if score is None]
        on_edge = panel.get_xaxis_transform()
        panel.plot(failed, [0.02] * len(failed), color=style.colour, marker="x", linestyle="none", transform=on_edge)
    panel.set_xscale("log")
    criterion = f"validation {results.experiment.criterion}"
    _finish(panel, "learning rate (large marker: chosen)", f"{criterion} in %" if is_accuracy else criterion)
    return handles


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, in rows, and room for a legend at its right side."""
    columns = min(count, PANELS_IN_A_ROW)
    rows = -(-count // columns)
    figure = _figure(PANEL_INCHES[0] * columns + LEGEND_INCHES, PANEL_INCHES[1] * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[count:]:
        unused.remove()
    return figure, list(panels[:count])


def _figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _with_legend(figure: Figure, results: Results, drawn: Mapping[str, Any]) -> Figure:
    """Adds the legend, its entries in the order of the rows."""
    names: Iterable[str] = (name for method in results.methods for name in (method, f"{method}, paper"))
    ordered = {name: drawn[name] for name in names if name in drawn}
    figure.legend(ordered.values(), ordered.keys(), loc="outside right center", frameon=False)
    return figure


def _looks(style: Style) -> dict[str, Any]:
    return {"marker": style.marker, "color": style.colour, "capsize": 3, "markersize": 6}


def _percent(score: Summary) -> float:
    """Half the width of the interval in points; 0 for one run."""
    return 100 * (score.half_width or 0.0)


def _finish(panel: Axes, across: str, up: str) -> None:
    """Labels a panel; an interval of Student's t may reach beyond what an accuracy can be, a panel does not."""
    if up.endswith("%"):
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, 0.0), min(high, 101.0))
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.grid(alpha=0.3)
