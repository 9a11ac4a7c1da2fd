"""The cost model against measured grids: `python -m randlora_core.benchmark --grid --out docs/performance`."""

from pathlib import Path

import pytest

from randlora_core.benchmarking import grid

GRIDS = sorted((Path(__file__).parents[2] / "docs" / "performance").glob("grid_*.csv"))


def test_a_grid_is_committed():
    assert [path.stem for path in GRIDS] != []


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_model_picks_the_faster_path(path):
    rows = grid.read_grid(path)
    assert grid.is_complete(rows)
    device_type = path.stem.removeprefix("grid_")
    picked = [grid.agrees(row, device_type) for row in rows]
    assert sum(picked) >= 0.9 * len(picked)
    assert sum(grid.auto_is_fastest(row) for row in rows) >= 0.9 * len(rows)
