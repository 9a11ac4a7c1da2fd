"""Bases that are not stored, and bases in 2 bits: the same bits as stored ones, forward and backward."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from randlora_core import RandLoRAConfig, adapter_parameters, inject_adapter, load_adapter, merge_adapter, save_adapter
from randlora_core.adapters.bases import PackedBases, RecomputedBases, SharedBases, pack_signs, unpack_signs
from randlora_core.adapters.distributions import BASES, distribution
from randlora_core.adapters.random_integers import integers, integers_on, stream_key
from randlora_core.adapters.state import adapter_bases

VARIANTS = {
    "plain": {},
    "sqrt_gamma_zero": {"scale_by_sqrt_bases": True, "init": "gamma_zero"},
    "magnitude": {"magnitude": True},
    "distinct_a": {"distinct_a": True, "num_bases": 5},
    "fewer": {"num_bases": 2},
}
FLOATING = ("uniform", "normal")
NAMED = (*FLOATING, "binary", "sparse", "very_sparse")
STORAGE = {"recomputed": {"store_bases": False}, "packed": {"packed_bases": True}}


def model_with(dtype: torch.dtype = torch.float32, **fields) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 17), nn.ReLU(), nn.Linear(17, 13, bias=False), nn.Linear(13, 13)).to(dtype)
    inject_adapter(model, RandLoRAConfig(rank=4, seed=7, **fields), "all-linear")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(6, 11, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("shape", [(1,), (5,), (7, 129), (33, 5, 4), (3, 2, 4, 5)])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_integers_by_torch_are_those_by_numpy(seed, shape):
    for name in ("A", "B", "eightchr"):
        expected = integers(seed, name, shape)
        actual = integers_on("cpu", stream_key(seed, name), shape)
        assert torch.equal(actual, torch.from_numpy(expected.astype(np.int64)))
        assert torch.equal(integers_on("cpu", stream_key(seed, name), shape, slice(2, 4)), actual[2:4])


@pytest.mark.parametrize("basis", BASES)
def test_entries_by_torch_are_those_by_numpy(basis):
    entries = distribution(basis, 9.5)
    k = np.concatenate([integers(5, "A", (40_000,)), np.array([0, 1, 2**23, 2**24 - 2, 2**24 - 1], dtype=np.uint32)])
    expected = torch.from_numpy(entries.values(k)).to(entries.dtype)
    assert torch.equal(entries.tensor_values(torch.from_numpy(k.astype(np.int64))).to(entries.dtype), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 7), (4, 3, 5), (2, 9, 4)])
def test_packing_is_exact(shape):
    signs = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0)).to(torch.int8)
    packed = pack_signs(signs)
    size = math.prod(shape[1:])
    assert packed.shape == (shape[0], math.ceil(size / 4)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_signs(packed, size), signs.flatten(1))
    assert torch.equal(unpack_signs(packed, size // 2), signs.flatten(1)[:, : size // 2])
    assert unpack_signs(packed, size).dtype == torch.int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("storage", "basis"),
    [*(("recomputed", basis) for basis in NAMED), *(("packed", basis) for basis in NAMED if basis not in FLOATING)],
)
def test_outputs_and_gradients_to_the_bit(storage, basis, variant, dtype):
    results = []
    for fields in ({}, STORAGE[storage]):
        model = model_with(dtype, basis=basis, **VARIANTS[variant], **fields)
        output = model(inputs(dtype))
        output.float().square().sum().backward()
        results.append((output, *(parameter.grad for parameter in adapter_parameters(model))))
        merge_adapter(model)
        results[-1] += tuple(layer.weight for layer in model if not isinstance(layer, nn.ReLU))
    for stored, other in zip(*results, strict=True):
        assert torch.equal(stored, other)


def test_what_is_kept():
    stored, packed, recomputed = (
        adapter_bases(model_with(basis="sparse", **fields))[4] for fields in ({}, *reversed(STORAGE.values()))
    )
    assert [type(b) for b in (stored, packed, recomputed)] == [SharedBases, PackedBases, RecomputedBases]
    sizes = [sum(buffer.nbytes for buffer in bases.buffers()) for bases in (stored, packed, recomputed)]
    assert stored.shapes == packed.shapes == recomputed.shapes == {"A": (4, 13), "B": (17, 4, 4)}
    assert sizes == [4 * 13 + 17 * 16, 4 * 4 + 17 * 4, 0]
    assert stored.checksum == packed.checksum == recomputed.checksum
    for name, shape in stored.shapes.items():
        part = tuple(max(1, size - 1) for size in shape)
        for bases in (packed, recomputed):
            assert torch.equal(bases.matrix(name, shape), stored.matrix(name, shape))
            assert torch.equal(bases.matrix(name, part), stored.matrix(name, part))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("storage", STORAGE)
def test_autograd_keeps_no_bases(storage, variant):
    """Each matrix that the forward pass made is gone after it; without the hooks, they live until the backward pass."""
    import gc
    import weakref

    model = model_with(basis="sparse", **VARIANTS[variant], **STORAGE[storage])
    (bases,) = adapter_bases(model).values()
    made, original = [], bases.matrix

    def watched(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        matrix = original(name, shape)
        made.append(weakref.ref(matrix.untyped_storage()))
        return matrix

    object.__setattr__(bases, "matrix", watched)
    output = model(inputs())
    gc.collect()
    first = len(made)
    assert first >= 6
    assert not any(reference() is not None for reference in made)
    output.square().sum().backward()
    assert len(made) > first


@pytest.mark.parametrize(
    ("fields", "fullgraph"),
    [
        ({"store_bases": False}, True),
        ({"store_bases": False, "basis": "sparse", "magnitude": True}, True),
        ({"store_bases": False, "basis": "normal"}, False),
        ({"packed_bases": True, "basis": "sparse"}, True),
    ],
)
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled(fields, fullgraph):
    torch._dynamo.reset()
    model = model_with(**fields)
    results = []
    for each in (torch.compile(model, backend="aot_eager", fullgraph=fullgraph), model):
        model.zero_grad()
        output = each(inputs())
        output.square().sum().backward()
        results.append((output, *(parameter.grad for parameter in adapter_parameters(model))))
    for compiled, plain in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


def test_device_and_dtype_moves_and_files(tmp_path):
    model = model_with(store_bases=False)
    save_adapter(model, tmp_path)
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(11, 17), nn.ReLU(), nn.Linear(17, 13, bias=False), nn.Linear(13, 13))
    loaded = load_adapter(fresh, tmp_path)
    assert isinstance(adapter_bases(loaded)[4], RecomputedBases)
    assert torch.equal(loaded(inputs()), model(inputs()))
    stored = model_with()
    assert torch.equal(loaded.double()(inputs().double()), stored.double()(inputs().double()))
    assert adapter_bases(loaded.to("meta"))[4].matrix("A", (4, 11)).is_meta


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"packed_bases": True}, "packed_bases=True needs a basis of signs, not basis='uniform'"),
        ({"packed_bases": True, "basis": "sparse", "store_bases": False}, "has no effect with store_bases=False"),
        ({"basis": "imported", "store_bases": False}, "'imported' is kept as it is"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ValueError, match=message):
        RandLoRAConfig(rank=4, **fields)
