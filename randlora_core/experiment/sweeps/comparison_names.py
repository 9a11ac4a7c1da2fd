"""Where comparison files lie: `configs/comparison/<scale>/<name>.yaml`, or without a folder where a name has no scales.

A scale is the size at which a claim is tested: `paper` takes the paper's models and data, `mini` models and data that
need no hub, `demo` a few minutes. A file with the key `table: 3` is also found as `table3`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from randlora_core.experiment.compose import CONFIGS

SCALES = ("demo", "paper", "mini")
"""The folders of `configs/comparison`, in the order in which they are searched where no scale is named."""


def comparison_names(configs: Path = CONFIGS) -> list[str]:
    """All comparison files as `find_comparison` takes them, such as "default" and "mini/figure3"."""
    found = _files(configs)
    return sorted(name if scale is None else f"{scale}/{name}" for name, scales in found.items() for scale in scales)


def find_comparison(name: str, scale: str | None = None, configs: Path = CONFIGS) -> Path:
    """The file of a comparison.

    Args:
        name: Its name (figure3), its scale and name (mini/figure3), or the paper's number of its table (table3).
        scale: One of `SCALES`; None takes the first of them at which there is such a file.
        configs: The configuration tree.

    Raises:
        ValueError: No such file; the message names what is accepted.
    """
    inner, _, plain = name.rpartition("/")
    if scale not in (None, inner) and inner:
        raise ValueError(f"scale={scale} of comparison {name!r}; accepted: scale={inner}")
    known = _files(configs)
    if plain not in known:
        known |= {f"table{number}": known[stem] for number, stem in _tables(known)}
    if plain not in known:
        raise ValueError(f"unknown comparison {plain!r}; accepted: {', '.join(sorted(known))}")
    scale, scales = scale or inner or next(iter(known[plain])), known[plain]
    if scale not in scales:
        accepted = ", ".join("no scale" if one is None else f"scale={one}" for one in scales)
        raise ValueError(f"scale={scale} of comparison {plain!r}; accepted: {accepted}")
    return scales[scale]


def scale_of(path: Path) -> str | None:
    """The scale of a comparison file; None for one that has none."""
    return path.parent.name if path.parent.name in SCALES else None


def _files(configs: Path) -> dict[str, dict[str | None, Path]]:
    """Name -> scale -> file; the preferred scale comes first."""
    found: dict[str, dict[str | None, Path]] = {}
    for scale in (None, *SCALES):
        for file in sorted((configs / "comparison" / (scale or "")).glob("*.yaml")):
            found.setdefault(file.stem, {})[scale] = file
    return found


def _tables(known: dict[str, dict[str | None, Path]]) -> Iterable[tuple[int, str]]:
    """The paper's numbers of tables, as numbered in the submission, and the names of the files that state them."""
    import yaml

    for name, scales in known.items():
        for file in scales.values():
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            if "table" in values:
                yield values["table"], name
