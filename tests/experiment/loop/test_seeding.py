import pytest
import torch

from randlora_core.experiment.loop.seeding import STREAMS, derive_seed, generator, seed_global


def test_streams_seeds_and_counters_are_all_different():
    seeds = {
        derive_seed(seed, stream, *counters)
        for seed in range(3)
        for stream in STREAMS
        for counters in [(), (0,), (1,), (0, 1)]
    }
    assert len(seeds) == 3 * len(STREAMS) * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_does_not_depend_on_what_was_drawn_elsewhere():
    first = torch.rand(5, generator=generator(1, "data_order", 3))
    torch.rand(100)
    torch.rand(7, generator=generator(1, "dropout", 3))
    assert torch.equal(first, torch.rand(5, generator=generator(1, "data_order", 3)))
    seed_global(1, "initialisation")
    values = torch.rand(5)
    seed_global(1, "initialisation")
    assert torch.equal(values, torch.rand(5))


def test_unknown_streams_are_refused():
    with pytest.raises(ValueError, match="unknown stream 'order'; known: initialisation"):
        derive_seed(0, "order")
