"""Draws a comparison as a figure: accuracy against trainable parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from randlora_core.experiment.reports.results import Point, Results
from randlora_core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*X<>ph8d"
PANEL_INCHES = (4.6, 4.2)


def plot_accuracy_against_parameters(results: Results, path: Path) -> None:
    """Writes a PNG with one panel per point: test accuracy with its 95 % interval against trainable parameters.

    The parameters are on a logarithmic axis; a method without a learning rate, such as zero-shot or the
    converged linear probe, is a dashed line across the panel.

    Args:
        results: The numbers.
        path: The PNG to write.

    Raises:
        ValueError: There is no result.
    """
    if not results.cells:
        raise ValueError(f"comparison {results.name!r} holds no finished run to plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(results.points)
    figure = Figure(figsize=(PANEL_INCHES[0] * count + 2.2, PANEL_INCHES[1]), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    drawn = {}
    for panel, point in zip(panels, results.points, strict=True):
        drawn.update(_draw_panel(panel, results, point))
    ordered = {method: drawn[method] for method in results.methods if method in drawn}
    figure.legend(ordered.values(), ordered.keys(), loc="outside right center", frameon=False)
    with atomic_file(path) as part:
        canvas.print_figure(part, dpi=150, format="png")


def _draw_panel(panel: Axes, results: Results, point: Point) -> dict[str, object]:
    """Draws the methods at one point and returns their handles for the legend."""
    from matplotlib import colormaps

    handles = {}
    for index, method in enumerate(results.methods):
        cell = results.cell(method, point)
        if cell is None or cell.mean is None:
            continue
        colour = colormaps["tab20"](2 * index % 20 + (2 * index // 20) % 2)
        mean = 100 * cell.mean.mean
        if cell.trainable == 0 or cell.learning_rate["value"] is None:
            handles[method] = panel.axhline(mean, color=colour, linestyle="--", linewidth=1.2)
            continue
        spread = 100 * (cell.mean.half_width or 0.0)
        style = {"marker": MARKERS[index % len(MARKERS)], "color": colour, "linestyle": "none", "capsize": 3}
        handles[method] = panel.errorbar(cell.trainable, mean, yerr=spread, markersize=7, **style)
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0.0), min(high, 101.0))  # a t interval may reach beyond what an accuracy can be
    panel.set_xscale("log")
    panel.set_title(results.title(point))
    panel.set_xlabel("trainable parameters")
    panel.set_ylabel("test accuracy in %")
    panel.grid(alpha=0.3)
    return handles
