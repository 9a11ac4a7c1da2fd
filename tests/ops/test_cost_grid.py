"""The cost model against measured grids: `python -m randlora_core.benchmark --grid --out docs/performance`."""

from pathlib import Path

import pytest

from randlora_core.benchmarking import grid

RESULTS = Path(__file__).parents[2] / "docs" / "performance"
GRIDS = {device: RESULTS / f"grid_{device}.csv" for device in ("cpu", "cuda")}


@pytest.mark.parametrize("device", GRIDS)
def test_the_model_picks_the_faster_path(device):
    rows = grid.read_grid(GRIDS[device])
    assert grid.is_complete(rows)
    picked, mean, worst = grid.judge(rows, device)
    assert 0.9 <= picked <= 1 and 1 <= mean <= 1.02 and mean < worst <= 1.3


def test_mixtures_of_paths_are_as_fast():
    """On the CPU: CUDA's mixtures were measured with the rates that its grid has since replaced."""
    rows = grid.read_grid(GRIDS["cpu"])
    assert sum(grid.auto_is_fastest(row) for row in rows) >= 0.9 * len(rows)
