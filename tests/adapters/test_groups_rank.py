"""The rank of updates by bases in groups, in float64: full where a layer has at least as many bases as groups."""

import os

import pytest
import torch

from randlora_core import RandLoRAConfig, ops
from randlora_core.adapters.randlora import RandLoRAUpdate
from randlora_core.adapters.targets import find_targets
from randlora_core.models.architectures import ARCHITECTURES, build_architecture
from randlora_core.models.counts import ROWS

# Larger and smaller side, rank: sides scaled down from those of the paper's models, and sides that no group divides.
SMALL = [(48, 48, 6), (192, 48, 6), (144, 48, 4), (64, 64, 8), (256, 64, 8), (304, 56, 6), (57, 43, 6), (131, 97, 9)]


def rank_of_update(larger: int, smaller: int, rank: int, groups: int, seed: int = 0, **fields) -> int:
    """The numerical rank for normal gamma, and lambda of either sign with magnitudes from 0.5 to 1.5.

    A lambda close to 0 takes a row of the scaled A away, with dense bases, too, and is not what is examined here.
    On the layers of the paper's models the condition numbers were up to 2.3e7, far from the limit of 1e10.
    """
    config = RandLoRAConfig(rank=rank, groups=groups, seed=seed, **fields)
    bases = RandLoRAUpdate.make_bases(config, [(larger, smaller)], "cpu")
    generator = torch.Generator().manual_seed(seed)
    n = config.bases_on((larger, smaller))
    uniform = torch.rand(2, rank, n, generator=generator, dtype=torch.float64) - 0.5
    lambda_ = uniform[0].sign() * (1 + uniform[1])
    gamma = torch.randn(n, smaller, generator=generator, dtype=torch.float64)
    update = ops.delta(lambda_, gamma, bases.A, bases.B)
    if larger > smaller:
        update = torch.linalg.qr(update, mode="r").R  # has the update's singular values
    values = torch.linalg.svdvals(update)
    return int((values > 1e-10 * values[0]).sum())


def numbers_of_groups(smaller: int, rank: int) -> list[int]:
    """All above 1 that divide the rank, and that the number of bases is not below."""
    return [g for g in range(2, rank + 1) if rank % g == 0 and -(-smaller // rank) >= g]


@pytest.mark.parametrize(("larger", "smaller", "rank"), SMALL)
def test_full_rank_on_scaled_down_layers(larger, smaller, rank):
    assert rank in numbers_of_groups(smaller, rank)
    for groups in numbers_of_groups(smaller, rank):
        for seed in range(3):
            assert rank_of_update(larger, smaller, rank, groups, seed) == smaller


def test_signs_for_a_lose_rank_where_a_group_has_more_than_one_of_its_rows():
    """The reason why only one row a group takes signs: bases of signs, g = r / 2, are short of full rank."""
    assert rank_of_update(48, 48, 6, 3) == 48
    assert any(rank_of_update(48, 48, 6, 3, seed, basis="binary") < 48 for seed in range(5))


def test_fewer_bases_than_groups_can_lose_rank():
    assert rank_of_update(100, 100, 30, 30, allow_rank_loss=True) < 100
    assert rank_of_update(100, 100, 30, 2) == 100


LARGE = 3000
"""Smaller sides from which singular values take minutes."""


def paper_cases() -> list[tuple[int, int, int]]:
    """Every layer shape of the paper's models with the paper's ranks; of sides from 3,000, which take long, one."""
    cases = set()
    for name in ARCHITECTURES:
        architecture = build_architecture(name)
        ranks = [rank for method, rank in ROWS[name] if method == "randlora"]
        for shape in find_targets(architecture.model, architecture.targets).values():
            chosen = ranks if min(shape) < LARGE else ranks[1:2]
            cases |= {(max(shape), min(shape), rank) for rank in chosen}
    return sorted(cases)


def check_full_rank(cases: list[tuple[int, int, int]]) -> None:
    for larger, smaller, rank in cases:
        groups = numbers_of_groups(smaller, rank)
        for number in groups if smaller < 1000 else groups[-1:]:
            assert rank_of_update(larger, smaller, rank, number) == smaller, (larger, smaller, rank, number)


@pytest.mark.slow
def test_full_rank_on_the_layers_of_the_papers_models():
    cases = paper_cases()
    assert len(cases) >= 20
    check_full_rank([case for case in cases if case[1] < LARGE])


@pytest.mark.skipif("RANDLORA_LARGE_LAYERS" not in os.environ, reason="RANDLORA_LARGE_LAYERS is not set: takes minutes")
def test_full_rank_on_large_layers_of_the_papers_models():
    check_full_rank([case for case in paper_cases() if case[1] >= LARGE])


@pytest.mark.parametrize(("groups", "rank"), [(1, 246), (2, 240), (3, 234), (6, 216)])
def test_directions_that_training_can_take(groups, rank):
    """The rank of the update's Jacobian in lambda and gamma, 252 parameters on 36 x 36, r = 6; at g = r it is n d."""
    bases = RandLoRAUpdate.make_bases(RandLoRAConfig(rank=6, groups=groups), [(36, 36)], "cpu")
    generator = torch.Generator().manual_seed(0)
    vectors = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 6), (6, 36)))
    parts = torch.autograd.functional.jacobian(lambda *given: ops.delta(*given, bases.A, bases.B).flatten(), vectors)
    values = torch.linalg.svdvals(torch.cat([part.flatten(1) for part in parts], dim=1))
    assert int((values > 1e-9 * values[0]).sum()) == rank
