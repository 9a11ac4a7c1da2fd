"""How a method looks in every figure: a colour that colour-blind readers tell apart, in shades for its ranks."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from randlora_core.experiment.reports.results import Results

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) for the paper's methods, Paul Tol's muted one
# (https://sronpersonalpages.nl/~pault/) for others; black and greys for what no adapter is.
COLOURS = {
    "full": "#000000",
    "linear_probe": "#666666",
    "zero_shot": "#aaaaaa",
    "lora": "#0072b2",
    "randlora": "#d55e00",
    "vera": "#009e73",
    "nola": "#cc79a7",
    "dora": "#56b4e9",
    "rslora": "#e69f00",
    "randdora": "#882255",
    "hira": "#332288",
    "c3a": "#999933",
    "boft": "#aa4499",
}
OTHERS = ("#44aa99", "#ddcc77", "#117733", "#cc6677", "#88ccee")
MARKERS = "osD^vP*X<>ph8d"
LIGHTEST = 0.6
"""How far the lightest shade of a colour is towards white."""


@dataclass(frozen=True)
class Style:
    """A row's looks: its colour as RGB in [0, 1], and its marker."""

    colour: tuple[float, float, float]
    marker: str


def base_colour(family: str) -> str:
    """The colour of a method; of one that has none of its own, by its name, so that it is the same in all figures."""
    return COLOURS.get(family) or OTHERS[zlib.crc32(family.encode()) % len(OTHERS)]


def styles(results: Results) -> dict[str, Style]:
    """The looks of every row; rows of one method have its colour, each in a lighter shade than the row before."""
    from matplotlib.colors import to_rgb

    found = {}
    for index, label in enumerate(results.methods):
        family = results.families[label]
        relatives = [other for other in results.methods if results.families[other] == family]
        shade = LIGHTEST * relatives.index(label) / max(1, len(relatives) - 1)
        colour = tuple(part + shade * (1 - part) for part in to_rgb(base_colour(family)))
        found[label] = Style(colour, MARKERS[index % len(MARKERS)])
    return found
