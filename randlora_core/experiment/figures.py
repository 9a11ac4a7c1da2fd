"""Draws a comparison as a figure: accuracy against trainable parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from randlora_core.experiment.comparison import Comparison
from randlora_core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*X<>ph8d"
PANEL_INCHES = (4.6, 4.2)


def plot_accuracy_against_parameters(comparison: Comparison, path: Path) -> None:
    """Writes a PNG with one panel per dataset: test accuracy with its 95 % interval against trainable parameters.

    The parameters are on a logarithmic axis; a method that trains nothing is a dashed line across the panel.

    Args:
        comparison: The numbers.
        path: The PNG to write.

    Raises:
        ValueError: The comparison holds no result.
    """
    if not comparison.cells:
        raise ValueError(f"comparison {comparison.name!r} holds no finished run to plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(comparison.datasets)
    figure = Figure(figsize=(PANEL_INCHES[0] * count + 2.2, PANEL_INCHES[1]), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    drawn = {}
    for panel, dataset in zip(panels, comparison.datasets, strict=True):
        drawn.update(_draw_panel(panel, comparison, dataset))
    ordered = {method: drawn[method] for method in comparison.methods if method in drawn}
    figure.legend(ordered.values(), ordered.keys(), loc="outside right center", frameon=False)
    with atomic_file(path) as part:
        canvas.print_figure(part, dpi=150, format="png")


def _draw_panel(panel: Axes, comparison: Comparison, dataset: str) -> dict[str, object]:
    """Draws the methods on one dataset and returns their handles for the legend."""
    from matplotlib import colormaps

    handles = {}
    for index, method in enumerate(comparison.methods):
        cell = comparison.cell(method, dataset)
        if cell is None:
            continue
        colour = colormaps["tab20"](2 * index % 20 + (2 * index // 20) % 2)
        mean = 100 * cell.accuracy.mean
        if cell.trainable == 0:
            handles[method] = panel.axhline(mean, color=colour, linestyle="--", linewidth=1.2)
            continue
        spread = 100 * (cell.accuracy.half_width or 0.0)
        style = {"marker": MARKERS[index % len(MARKERS)], "color": colour, "linestyle": "none", "capsize": 3}
        handles[method] = panel.errorbar(cell.trainable, mean, yerr=spread, markersize=7, **style)
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0.0), min(high, 101.0))  # a t interval may reach beyond what an accuracy can be
    panel.set_xscale("log")
    panel.set_title(dataset)
    panel.set_xlabel("trainable parameters")
    panel.set_ylabel("test accuracy in %")
    panel.grid(alpha=0.3)
    return handles
