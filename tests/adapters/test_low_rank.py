"""The truncated decomposition against torch's exact one."""

import pytest
import torch
from torch import Tensor

from randlora_core.adapters import low_rank
from randlora_core.adapters.low_rank import truncated

D, d = 320, 160
SPECTRA = {
    "powers": 0.7 ** torch.arange(d, dtype=torch.float64),
    "1 / i": 1.0 / torch.arange(1, d + 1, dtype=torch.float64),
    "1 / sqrt i": torch.arange(1, d + 1, dtype=torch.float64) ** -0.5,
    "one large": torch.cat([torch.tensor([100.0]).double(), torch.ones(d - 1).double()]),
}


def with_values(values: Tensor, rows: int = D, dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix (rows, len(values)) with these singular values."""
    generator = torch.Generator().manual_seed(len(values))
    sides = (torch.randn(size, len(values), generator=generator, dtype=torch.float64) for size in (rows, len(values)))
    left, right = (torch.linalg.qr(side)[0] for side in sides)
    return ((left * values) @ right.T).to(dtype)


def noise(dtype: torch.dtype) -> Tensor:
    return torch.randn(D, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def product(part: low_rank.LowRank) -> Tensor:
    return part.b.double() @ part.a.double()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 8, 24, 60, 160])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_rank_gives_the_exact_truncation(spectrum, rank, dtype, turned):
    """Randomised up to rank 39 here; Eckart and Young: no matrix of the rank is nearer."""
    matrix = with_values(SPECTRA[spectrum], dtype=dtype)
    matrix = matrix.T if turned else matrix
    part = truncated(matrix, rank=rank)
    assert part.a.shape == (rank, matrix.shape[1]) and part.b.shape == (matrix.shape[0], rank)
    assert part.a.dtype == part.b.dtype == dtype
    values = SPECTRA[spectrum]
    best = values[rank:].norm()
    # float64: the Gram matrix does not tell singular values below the root of 2e-16 from zero.
    rounding = 1e-5 if dtype == torch.float32 else 5e-8
    distance = (product(part) - matrix.double()).norm()
    assert best - rounding * values.norm() <= distance <= 1.001 * best + rounding * values.norm()
    assert part.kept == pytest.approx((values[:rank].norm() / values.norm()).item(), rel=1e-3)
    # Factors of equal norm, and what is said to be kept is what is there.
    assert part.a.double().norm() == pytest.approx(part.b.double().norm().item(), rel=1e-4)
    assert product(part).norm() == pytest.approx(part.kept * values.norm().item(), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 8, 24])
def test_noise_without_leading_values_loses_little(rank):
    matrix = noise(torch.float32)
    values = torch.linalg.svdvals(matrix.double())
    part = truncated(matrix, rank=rank)
    assert 0.97 * values[:rank].norm() <= product(part).norm() <= values[:rank].norm() * (1 + 1e-6)
    assert (product(part) - matrix.double()).norm() <= 1.002 * values[rank:].norm()


def test_no_gram_matrix_of_the_whole_is_made_for_a_small_rank(monkeypatch):
    widths, made = [], low_rank._gram_eigenvectors
    monkeypatch.setattr(low_rank, "_gram_eigenvectors", lambda m: widths.append(m.shape[1]) or made(m))
    truncated(noise(torch.float32), rank=8)
    truncated(noise(torch.float32), rank=100)
    truncated(with_values(SPECTRA["powers"][:12], dtype=torch.float32).repeat(1, 13), energy=0.9)
    truncated(noise(torch.float32), energy=0.9)
    assert widths == [24, 160, 19, 160]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 30, 159])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_energy_near_the_threshold(spectrum, rank, dtype):
    """A little less than what `rank` values hold takes `rank` of them, a little more takes one more.

    The next value's share is what is at stake: 1 % of it in float64, and not less than rounding the matrix to float32
    moves. Shares that float64 cannot tell from the whole are left out.
    """
    values = SPECTRA[spectrum]
    matrix = with_values(values, dtype=dtype)
    shares = values.square() / values.square().sum()
    held = shares[:rank].sum().item()
    little = max(0.01 * shares[rank].item(), 1e-7 if dtype == torch.float32 else 1e-12)
    if shares[rank] < 2 * little:
        pytest.skip("the next value is below the rounding of the matrix")
    below, above = (truncated(matrix, energy=held + sign * little) for sign in (-1, 1))
    assert (len(below.a), len(above.a)) == (rank, rank + 1)
    assert below.kept**2 == pytest.approx(held, abs=1e-6)
    assert above.kept**2 >= held + little
    torch.testing.assert_close(
        product(below).norm() / values.norm(), torch.tensor(below.kept).double(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_energy_of_an_update_that_has_a_low_rank(dtype, turned):
    """Such as that of LoRA: its own rank is found, and its factors are exact."""
    values = torch.linspace(3.0, 1.0, 12, dtype=torch.float64)
    matrix = with_values(values) @ with_values(torch.ones(12, dtype=torch.float64), rows=d).T
    matrix = (matrix.T if turned else matrix).to(dtype)
    part = truncated(matrix, energy=1.0)
    assert len(part.a) == 12 and part.kept == pytest.approx(1.0)
    torch.testing.assert_close((part.b @ part.a), matrix, rtol=1e-4, atol=1e-6)
    shares = values.square().cumsum(0) / values.square().sum()
    for rank in (1, 5, 11):
        part = truncated(matrix, energy=shares[rank - 1].item() - 1e-6)
        assert len(part.a) == rank
        assert len(truncated(matrix, energy=shares[rank - 1].item() + 1e-6).a) == rank + 1


def test_everything_of_a_small_matrix_and_of_zeros():
    matrix = torch.randn(9, 3) @ torch.randn(3, 7)
    part = truncated(matrix, rank=3)
    torch.testing.assert_close(part.b @ part.a, matrix, rtol=1e-4, atol=1e-5)
    assert part.kept == pytest.approx(1.0)
    assert len(truncated(matrix, energy=1.0).a) == 3 and len(truncated(matrix, rank=99).a) == 7
    torch.testing.assert_close(product(truncated(matrix, rank=99)).float(), matrix, rtol=1e-4, atol=1e-5)
    for wanted in ({"rank": 2}, {"energy": 0.5}):
        part = truncated(torch.zeros(9, 7), **wanted)
        assert part.kept == 1.0 and not product(part).any()


def test_results_are_the_same_each_time_and_take_no_random_numbers():
    before = torch.random.get_rng_state()
    first = truncated(noise(torch.float32), rank=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    second = truncated(noise(torch.float32), rank=8)
    assert torch.equal(first.a, second.a) and torch.equal(first.b, second.b)
