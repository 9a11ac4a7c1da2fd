"""Two processes that share every micro-batch contrast its images with all its texts, as one process does."""

from pathlib import Path

import pytest
import torch
from launching import launch
from tiny_clip import RandomImages, train


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes got."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("contrastive_in_processes.py")
    launch(script, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("every_class", [False, True])
def test_features_are_gathered(processes, every_class, accumulate):
    alone = train(every_class, accumulate)
    for got in (process[every_class, accumulate] for process in processes):
        assert got["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        for name, value in alone["weights"].items():
            assert torch.allclose(got["weights"][name], value, atol=1e-6), name


def test_the_case_is_a_hard_one():
    """Micro-batches whose texts do not divide by two, and images of one process whose class only the other one has."""
    whole, first, second = RandomImages(12), RandomImages(12).shard(0, 2), RandomImages(12).shard(1, 2)
    assert any(len(whole.whole_labels(index).unique()) % 2 for index in range(12))
    assert any(set(first[index][1].tolist()) != set(second[index][1].tolist()) for index in range(12))
