"""Plots ratios of step times: over tokens, and over the number of groups of RandLoRA's bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from randlora_core.benchmarking.goals import BLOCKS
from randlora_core.benchmarking.methods import METHODS_BY_GROUPS
from randlora_core.benchmarking.report import BASELINES, Result

Point = tuple[float, float, float, float]
"""x, and the first quartile, median and third quartile of a ratio."""

PANELS_IN_A_ROW = 3


@dataclass(frozen=True)
class Panel:
    """Holds one diagram.

    Attributes:
        title: The ratio that it shows.
        x_label: What it is shown over.
        curves: Name of a case -> its points.
        ticks: Numbers on the x axis; matplotlib's choice where there are none.
    """

    title: str
    x_label: str
    curves: Mapping[str, Sequence[Point]]
    ticks: tuple[int, ...] = ()


def over_tokens(results: Sequence[Result]) -> list[Panel]:
    """Makes panels of RandLoRA's step relative to each of `BASELINES`; with bases in groups, too, if measured."""
    panels = []
    for method in ("randlora", BLOCKS):
        if any(method in result.timings for result in results):
            for baseline in BASELINES:
                curves: dict[str, list[Point]] = {}
                for case, timings in ((result.case, result.timings) for result in results):
                    if method in timings and baseline in timings:
                        ratio = timings[method].ratio_to(timings[baseline])
                        curves.setdefault(case.name, []).append((case.tokens_per_side, *ratio))
                panels.append(Panel(f"{method} / {baseline}", "tokens / smaller side", curves))
    return panels


def over_groups(results: Sequence[Result]) -> list[Panel]:
    """Makes a panel of the step with bases in g groups relative to each of LoRA, dense bases and full fine-tuning."""
    panels = []
    for baseline, words in (("lora", "LoRA"), ("randlora", "dense bases"), ("full", "full fine-tuning")):
        curves = {
            f"{result.case.name}, {result.case.tokens} tokens": [
                (groups, *result.timings[method].ratio_to(result.timings[baseline]))
                for groups, method in METHODS_BY_GROUPS.items()
                if method in result.timings
            ]
            for result in results
        }
        ticks = sorted({groups for points in curves.values() for groups, *_ in points})
        panels.append(Panel(f"bases in groups / {words}", "groups", curves, tuple(ticks)))
    return panels


def plot(path: Path, panels: Sequence[Panel], machine: str) -> None:
    """Draws panels side by side, with bars from the first to the third quartile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    num_rows = -(-len(panels) // PANELS_IN_A_ROW)
    size = (4 * PANELS_IN_A_ROW, 3.4 * num_rows)
    figure, grid = pyplot.subplots(num_rows, PANELS_IN_A_ROW, figsize=size, sharey=True, squeeze=False)
    for axis, panel in zip(grid.flat, panels, strict=True):
        for name, points in panel.curves.items():
            x, first, median, third = zip(*sorted(points), strict=True)
            below = [m - f for m, f in zip(median, first, strict=True)]
            above = [t - m for m, t in zip(median, third, strict=True)]
            axis.errorbar(x, median, yerr=(below, above), marker="o", markersize=3, capsize=2, linewidth=1, label=name)
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set(title=panel.title, xlabel=panel.x_label, xscale="log")
        if panel.ticks:
            axis.set_xticks(panel.ticks, labels=panel.ticks, minor=False)
            axis.minorticks_off()
    for row in grid:
        row[0].set_ylabel("ratio of step times")
    if drawn := [axis for axis in grid.flat if axis.get_legend_handles_labels()[0]]:
        drawn[-1].legend(fontsize=6)
    figure.suptitle(machine, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
