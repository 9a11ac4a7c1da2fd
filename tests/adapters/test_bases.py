"""The generator of the frozen bases: golden bits, distributions, sharing, independence of all but the index."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

from randlora_core.adapters.bases import Matrix, SharedBases
from randlora_core.adapters.distributions import BASES, distribution, normal_quantiles
from randlora_core.adapters.random_integers import BITS, integers

UNIFORM = distribution("uniform")
SHAPES = {"A": (3, 10), "B": (14, 4, 3)}

# Computed once on x86-64; a change means that every saved adapter loses its bases.
GOLDEN_INTEGERS = {
    0: [[11702882, 7730004, 5834115], [6113773, 9108742, 2633883]],
    1: [[5440569, 5731664, 3328249], [3326954, 9723173, 1905496]],
    9223372036854775807: [[4435337, 5436519, 92676], [12852653, 14338835, 7024178]],
}
GOLDEN_CHECKSUMS = {
    0: "3cd2518d65df449bae3cb07871dd599f8132bc376d2dc825acdf42b569b424ff",
    1: "14c565c0e1142f0661b95a326f75acc9e66fccf83191969d856bb2a1e9840548",
    9223372036854775807: "4ad62fa9192dc11aa67798f26375d7d9a2712a7595620eb81a6aea84585601ef",
}
GOLDEN_VALUES = {
    "uniform": [0.68359375, -0.1357421875, -0.52734375, -1.34375, -0.0291748046875, -0.41015625],
    "normal": [0.51953125, -0.0986328125, -0.390625, -1.21875, -0.0211181640625, -0.30078125],
    "binary": [1, -1, -1, -1, -1, -1],
    "ternary": [0, 0, 0, -1, 0, 0],
    "sparse": [0, 0, 0, -1, 0, 0],
    "very_sparse": [0, 0, 0, -1, 0, 0],
}


def make(basis: str = "uniform", seed: int = 0, device: str = "cpu") -> SharedBases:
    entries = distribution(basis, 5.0 if basis in ("ternary", "very_sparse") else None)
    return SharedBases(seed, {name: Matrix(shape, entries) for name, shape in SHAPES.items()}, device)


def splitmix64(state: int) -> int:
    """The published finaliser in Python's unbounded integers."""
    mask = 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_integers_match_plain_python():
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    seed, name, shape = 2**63 - 1, "B", (3, 2, 4)
    stream = int.from_bytes(name.encode(), "little")
    key = splitmix64((splitmix64(seed) + stream) & mask)
    actual = integers(seed, name, shape)
    for index in np.ndindex(shape):
        word = key
        for position in index:
            word = splitmix64((word + golden * (position + 1)) & mask)
        assert actual[index] == word >> (64 - BITS)


@pytest.mark.parametrize("seed", GOLDEN_INTEGERS)
def test_golden_integers(seed):
    assert integers(seed, "A", (2, 3)).tolist() == GOLDEN_INTEGERS[seed]


@pytest.mark.parametrize("seed", GOLDEN_CHECKSUMS)
def test_golden_checksums(seed):
    assert make(seed=seed).checksum == GOLDEN_CHECKSUMS[seed]


@pytest.mark.parametrize("basis", BASES)
def test_golden_values(basis):
    """Values as stored, so that a change of a distribution or of the storage shows even where the integers stay."""
    assert make(basis).A[0, :6].tolist() == GOLDEN_VALUES[basis]


def test_checksum_depends_on_seed_name_and_shape_but_not_on_the_distribution():
    reference = make().checksum
    assert make("binary").checksum == reference
    assert make(seed=1).checksum != reference
    smaller = {"A": Matrix((3, 9), UNIFORM), "B": Matrix((14, 4, 3), UNIFORM)}
    renamed = {"A": Matrix((3, 10), UNIFORM), "C": Matrix((14, 4, 3), UNIFORM)}
    for matrices in (smaller, renamed):
        assert SharedBases(0, matrices).checksum != reference


@pytest.mark.parametrize("basis", BASES)
def test_entries_do_not_depend_on_the_size_of_the_matrix(basis):
    small = make(basis)
    entries = distribution(basis, 5.0 if basis in ("ternary", "very_sparse") else None)
    large = SharedBases(0, {"A": Matrix((9, 300), entries), "B": Matrix((1000, 70, 5), entries)})
    assert torch.equal(large.A[:3, :10], small.A)
    assert torch.equal(large.B[:14, :4, :3], small.B)
    assert large.B.numel() > 2 * 2**17  # more than one block of rows


def test_seeds_and_names_are_independent_streams():
    shape = (40, 50)
    streams = [integers(seed, name, shape).ravel() / 2**BITS - 0.5 for seed in (0, 1, 2) for name in ("A", "B")]
    correlation = np.corrcoef(streams) - np.eye(6)
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)


def test_neighbours_are_uncorrelated_along_every_axis():
    x = integers(3, "B", (60, 50, 40)).astype(float) / 2**BITS - 0.5
    for axis in range(3):
        a, b = np.delete(x, 0, axis), np.delete(x, -1, axis)
        assert abs((a * b).mean() * 12) < 5 / math.sqrt(a.size)


@pytest.mark.parametrize("basis", BASES)
def test_moments_and_storage(basis):
    bases = SharedBases(5, {"B": Matrix((400, 500), distribution(basis, 7.5 if "sparse" not in basis else 27.7))})
    values = bases.B.double() * bases.units["B"]
    n = values.numel()
    assert bases.B.element_size() <= 2
    # Five standard errors; the fourth moment of the sparsest is s / 2 = 14.
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs((values**2).mean() - 1) < 5 * math.sqrt(14 / n)


@pytest.mark.parametrize(
    ("basis", "s"), [("binary", 2.0), ("sparse", 6.0), ("ternary", 3.7), ("very_sparse", 768**0.5)]
)
def test_ternary_frequencies_and_unit(basis, s):
    entries = distribution(basis, s if basis not in ("binary", "sparse") else None)
    bases = SharedBases(1, {"B": Matrix((500, 600), entries)})
    n = bases.B.numel()
    assert set(bases.B.unique().tolist()) <= {-1, 0, 1}
    for sign in (-1, 1):
        assert abs(bases.B.eq(sign).sum() / n - 1 / s) < 5 * math.sqrt(1 / s / n)
    assert bases.units["B"] == pytest.approx(1 / math.sqrt(2 / s), rel=1e-12)
    if basis == "binary":
        assert (bases.B != 0).all()


def test_uniform_values_are_the_cells_midpoints():
    k = np.array([0, 1, 2**23 - 1, 2**23, 2**24 - 1], dtype=np.uint32)
    expected = ((k + 0.5) / 2**24 * 2 - 1) * math.sqrt(3)
    np.testing.assert_allclose(distribution("uniform").values(k), expected, rtol=2**-23)


def test_the_committed_table_is_the_normal_distribution():
    n = 4096
    expected = special.ndtri((np.arange(n) + 0.5) / n)
    expected /= np.sqrt((expected**2).mean())
    table = normal_quantiles()
    assert table.dtype == np.float32
    # scipy's releases may differ in the last bits.
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_a_dtype_change_leaves_the_stored_bits():
    for basis in ("uniform", "binary"):
        bases = make(basis)
        reference = {name: buffer.clone() for name, buffer in bases.named_buffers()}
        for change in (lambda b: b.double(), lambda b: b.half(), lambda b: b.to(torch.float32), lambda b: b.bfloat16()):
            change(bases)
            for name, buffer in bases.named_buffers():
                assert buffer.dtype == reference[name].dtype
                assert torch.equal(buffer, reference[name])


def test_meta_bases_are_generated_later_with_the_same_bits():
    bases = make(device="meta")
    assert bases.A.is_meta
    assert bases.checksum == make().checksum
    bases.generate("cpu")
    assert torch.equal(bases.B, make().B)


def test_copies_are_one_object_and_outside_the_state_dict():
    shared = make()
    holders = nn.ModuleList([nn.Sequential(), nn.Sequential()])
    for holder in holders:
        holder.bases = shared
    for model in (
        holders,
        copy.deepcopy(holders),
        pickle.loads(pickle.dumps(holders)),
        holders.to("cpu", torch.float64),
    ):
        assert model[0].bases is model[1].bases
        assert len(list(model.buffers())) == 2
        assert model.state_dict() == {}
        assert torch.equal(model[0].bases.A, make().A)
