"""Portable frozen random matrices, shared by all adapted layers of a model.

Every entry is a function of (seed, matrix name, index) alone: a counter-based generator (nested splitmix64, see
`integers`) gives 24 bits per entry, and the entry's value is an exact function of them. So an entry does not depend on
the size of the matrix, on the other layers, the device, the dtype, or the version of torch or numpy, and a slice of a
large matrix is the small matrix. Only the seed has to be saved; `SharedBases.checksum` proves that the same integers
come back.

Distributions (Table 3 of the paper, https://arxiv.org/abs/2502.00987), all of variance 1:

    uniform      U(-sqrt 3, sqrt 3), at the midpoints of 2^24 cells
    normal       N(0, 1), by a committed table of its inverse distribution function at the midpoints of 4096 cells
    binary       +-1
    ternary      +-1 with probability 1/s each, else 0; divided by the exact standard deviation sqrt(2/s)
    sparse       ternary with s = 6;  very_sparse: ternary with s = sqrt(d), d the largest smaller side of the targets

Matrices are stored in bfloat16, signs in int8: at most 2 bytes an element. A factor common to a matrix is kept beside
it (`SharedBases.units`), so that signs stay exact. `PackedBases` keeps signs in 2 bits each, and `RecomputedBases`
nothing at all: both give the same bits, made anew for each use.

Matrices that another library drew cannot be made again from a seed. `ImportedBases` keeps them as they are, in the
narrowest type that holds them exactly.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from randlora_core import splitmix
from randlora_core.adapters.config import AdapterConfig

BITS = 24
"""Random bits per entry."""

BASES = ("uniform", "normal", "binary", "ternary", "sparse", "very_sparse")
SPARSE_S = 6.0
IMPORTED = "imported"
"""Value of a config's `basis` that stands for `ImportedBases`: no seed gives the matrices."""

MIN_SPARSITY = 2.0

_CELLS = 2**BITS
_UNIFORM_STEP = float(np.float32(math.sqrt(3.0) / _CELLS))
_BLOCK_ELEMENTS = 2**17  # 1 MiB of 64-bit words: the mixing stays in a core's cache
_DEVICE_BLOCK_ELEMENTS = 2**24
_NORMAL_TABLE = Path(__file__).with_name("normal_quantiles.safetensors")


def integers(seed: int, name: str, shape: tuple[int, ...], rows: slice = slice(None)) -> np.ndarray:
    """The generator: 24-bit integers for the entries of a matrix.

    The key of index (i, j, ...) is key(i, j, ...) = mix(key(i, ...) + golden * (last index + 1)), which makes the
    entries along the last axis one splitmix64 stream (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195)
    whose seed is itself an output of such a stream.

    Args:
        seed: In [0, 2**63).
        name: Name of the matrix, at most 8 ASCII characters; different names are independent streams.
        shape: Shape of the matrix.
        rows: Part of the first axis to return.

    Returns:
        uint32 array of the shape, values in [0, 2**24).
    """
    stream = int.from_bytes(name.encode("ascii").ljust(8, b"\0"), "little")
    keys = splitmix.mix(np.array([seed], dtype=np.uint64))
    keys = splitmix.mix(keys + np.uint64(stream)).reshape(())
    for axis, size in enumerate(shape):
        index = np.arange(size, dtype=np.uint64)[rows if axis == 0 else slice(None)]
        keys = splitmix.outputs(keys, index)
    return (keys >> np.uint64(64 - BITS)).astype(np.uint32)


def integers_on(
    device: torch.device | str, seed: int, name: str, shape: tuple[int, ...], rows: slice = slice(None)
) -> Tensor:
    """The same integers as `integers`, int64, computed on `device` with torch's two's-complement arithmetic."""
    return _integers_from(stream_key(seed, name), device, shape, rows)


def stream_key(seed: int, name: str) -> int:
    """What the indices of a matrix are mixed with, as an int64."""
    stream = int.from_bytes(name.encode("ascii").ljust(8, b"\0"), "little")
    return int(splitmix.mix(splitmix.mix(np.array([seed], dtype=np.uint64)) + np.uint64(stream)).astype(np.int64)[0])


def _integers_from(key: int, device: torch.device | str, shape: tuple[int, ...], rows: slice = slice(None)) -> Tensor:
    """`integers_on` from a `stream_key`; torch.compile can trace it."""
    keys = torch.full((), key, dtype=torch.int64, device=device)
    for axis, size in enumerate(shape):
        index = torch.arange(size, device=device)[rows if axis == 0 else slice(None)]
        keys = splitmix.tensor_outputs(keys, index)
    return splitmix.shift_right(keys, 64 - BITS)


@dataclass(frozen=True)
class Distribution:
    """How integers become entries. Two distributions are equal if their entries are.

    Args:
        name: Name, with the sparsity where there is one.
        values: Maps uint32 integers to the stored entries, float32 or int8.
        tensor_values: The same on an int64 tensor, to the bit.
        dtype: Storage type.
        unit: Factor that makes the variance 1.
    """

    name: str
    values: Callable[[np.ndarray], np.ndarray] = field(compare=False)
    tensor_values: Callable[[Tensor], Tensor] = field(compare=False)
    dtype: torch.dtype
    unit: float = 1.0


def distribution(basis: str, sparsity: float | None = None) -> Distribution:
    """The distribution of a named basis.

    Args:
        basis: A name of `BASES`; "very_sparse" needs `sparsity`, since its s depends on the targets.
        sparsity: s of a ternary distribution, at least 2.
    """
    if basis == "uniform":
        return Distribution(basis, _uniform_values, _uniform_tensor, torch.bfloat16)
    if basis == "normal":
        return Distribution(basis, _normal_values, _normal_tensor, torch.bfloat16)
    s = {"binary": MIN_SPARSITY, "sparse": SPARSE_S}.get(basis, sparsity)
    assert s is not None, basis
    values = (functools.partial(function, s=s) for function in (_ternary_values, _ternary_tensor))
    return Distribution(f"ternary, s={s!r}", *values, torch.int8, unit=math.sqrt(s / 2.0))


def _uniform_values(k: np.ndarray) -> np.ndarray:
    # 2k + 1 - 2^24 is exact in float32, so there is one rounding, that of the product.
    odd = 2 * k.astype(np.int32) + 1 - _CELLS
    return odd.astype(np.float32) * np.float32(math.sqrt(3.0) / _CELLS)


def _uniform_tensor(k: Tensor) -> Tensor:
    return (2 * k + 1 - _CELLS).to(torch.float32) * _UNIFORM_STEP


def _normal_values(k: np.ndarray) -> np.ndarray:
    table = normal_quantiles()
    return table[k >> np.uint32(BITS - int(math.log2(len(table))))]


def _normal_tensor(k: Tensor) -> Tensor:
    table = torch.from_numpy(normal_quantiles())
    return table.to(k.device)[k >> (BITS - int(math.log2(len(table))))]


def _ternary_values(k: np.ndarray, s: float) -> np.ndarray:
    threshold = round(_CELLS / s)
    return (k >= _CELLS - threshold).astype(np.int8) - (k < threshold).astype(np.int8)


def _ternary_tensor(k: Tensor, s: float) -> Tensor:
    threshold = round(_CELLS / s)
    return (k >= _CELLS - threshold).to(torch.int8) - (k < threshold).to(torch.int8)


def entries_on(
    device: torch.device | str, seed: int, name: str, shape: tuple[int, ...], entries: Distribution
) -> Tensor:
    """A matrix of the seed on `device`, in its storage type; in blocks, so that its integers never exist at once."""
    device = torch.device(device)
    matrix = torch.empty(shape, dtype=entries.dtype, device=device)
    if device.type == "meta":
        return matrix
    for rows in _blocks(shape, _BLOCK_ELEMENTS if device.type == "cpu" else _DEVICE_BLOCK_ELEMENTS):
        if device.type == "cpu":  # numpy is about twice as fast there
            matrix[rows] = torch.from_numpy(entries.values(integers(seed, name, shape, rows)))
        else:
            matrix[rows] = entries.tensor_values(integers_on(device, seed, name, shape, rows)).to(entries.dtype)
    return matrix


@functools.cache
def normal_quantiles() -> np.ndarray:
    """The committed table: float32 (4096,), quantiles of N(0, 1) at (i + 1/2) / 4096, scaled to variance 1."""
    return load_file(_NORMAL_TABLE)["quantiles"]


@dataclass(frozen=True)
class Matrix:
    """A shared matrix to make: its shape, and a factor on entries of variance 1."""

    shape: tuple[int, ...]
    unit: float = 1.0


Part = tuple[str, tuple[int, ...]]
"""The leading part of a shared matrix: the matrix's name, and the part's shape."""


class SharedBases(nn.Module):
    """Frozen random matrices that many layers use slices of.

    One object is a sub-module of every update that uses it, so a model holds one copy, also after deepcopy, pickling
    and `.to()`. Its buffers are not part of the state_dict, and a change of the model's dtype leaves them as they are.

    Args:
        seed: Seed of the generator.
        matrices: Name (a Python identifier) -> what to make.
        entries: Distribution of the entries.
        device: Where the matrices live; on "meta" nothing is generated until `generate`.

    Attributes:
        seed: As given.
        units: Matrix name -> factor to multiply the stored entries by.
    """

    def __init__(
        self,
        seed: int,
        matrices: Mapping[str, Matrix],
        entries: Distribution,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.seed = seed
        self.units = {name: matrix.unit * entries.unit for name, matrix in matrices.items()}
        self._entries = entries
        self._casts: dict[tuple[str, torch.dtype], tuple[Tensor, int | None, Tensor]] = {}
        self._checksum: str | None = None
        self._shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
        self._register()
        if torch.device(device).type != "meta":
            self.generate(device)

    def _register(self) -> None:
        """Register what is kept, as buffers on the meta device."""
        for name, shape in self.shapes.items():
            self.register_buffer(name, torch.empty(shape, dtype=self._entries.dtype, device="meta"), persistent=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Matrix name -> shape."""
        return self._shapes

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return next(self.buffers()).device

    def matrix(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The leading part of a matrix in its storage type; a view where matrices are stored as they are.

        Args:
            name: Name of the matrix.
            shape: At most the matrix's size along every axis.
        """
        return getattr(self, name)[tuple(slice(size) for size in shape)]

    def cast(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As `matrix`, in another type, for methods whose matrices are small: a view of a cast of the whole matrix.

        The cast is kept for all layers and steps, one per type asked for, until the matrix changes.
        """
        whole = getattr(self, name)
        if whole.dtype == dtype or torch.compiler.is_compiling():
            return self.matrix(name, shape).to(dtype)
        version = None if whole.is_inference() else whole._version
        source, known, kept = self._casts.get((name, dtype), (None, None, None))
        if source is not whole or known != version:
            with torch.inference_mode(False):  # what inference makes, no backward pass may use
                kept = whole.to(dtype)
            self._casts[name, dtype] = (whole, version, kept)
        return kept[tuple(slice(size) for size in shape)]

    def kept_casts(self) -> list[Tensor]:
        """What `cast` keeps."""
        return [kept for *_, kept in self._casts.values()]

    def __getstate__(self) -> dict[str, object]:
        # Copies and files leave the casts out.
        return {**super().__getstate__(), "_casts": {}}

    def remakers(self, *parts: Part) -> tuple[Callable[[], Tensor], ...] | None:
        """Functions that give parts again in the backward pass, so that nothing keeps them until then.

        None where matrices are stored as they are, and there is nothing to gain.
        """
        return None

    def covers(self, needed: SharedBases) -> bool:
        """Whether every entry that `needed` would have is here, with the same factor and kept in the same way."""
        return (
            type(self) is type(needed)
            and (self.seed, self._entries, self.units) == (needed.seed, needed._entries, needed.units)
            and all(
                have >= need
                for name, shape in needed.shapes.items()
                for have, need in zip(self.shapes[name], shape, strict=True)
            )
        )

    @property
    def checksum(self) -> str:
        """SHA-256 over names, shapes and the generator's integers (32-bit little-endian), before any float or cast."""
        if self._checksum is None:
            digest = hashlib.sha256()
            for name, shape in sorted(self.shapes.items()):
                digest.update(f"{name}{shape}".encode())
                for rows in _blocks(shape):
                    digest.update(integers(self.seed, name, shape, rows).astype("<u4").tobytes())
            self._checksum = digest.hexdigest()
        return self._checksum

    def generate(self, device: torch.device | str) -> None:
        """Make the matrices on `device`."""
        for name, shape in self.shapes.items():
            setattr(self, name, entries_on("cpu", self.seed, name, shape, self._entries).to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedBases:
        # Follow the model to a device, but not to a dtype: the stored type is the narrowest that is exact.
        self._casts.clear()
        for name, matrix in self._buffers.items():
            moved = fn(matrix)
            self._buffers[name] = moved if moved.dtype == matrix.dtype else matrix.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Seed and shapes."""
        return f"seed={self.seed}, shapes={self.shapes}, dtype={self._entries.dtype}"


class _RemadeBases(SharedBases):
    """Bases whose `matrix` makes a new tensor."""

    def remakers(self, *parts: Part) -> tuple[Callable[[], Tensor], ...] | None:
        """As in `SharedBases`. Under torch.compile, the compiler chooses what to keep."""
        if torch.compiler.is_compiling():
            return None
        return tuple(functools.partial(self.matrix, name, shape) for name, shape in parts)


class PackedBases(_RemadeBases):
    """Signs in 2 bits each, four to a byte along the rows of the first axis; unpacked for each use.

    Otherwise as `SharedBases`; the distribution must be one of signs. The buffer of matrix `A` is called `A_packed`.
    """

    def _register(self) -> None:
        assert self._entries.dtype == torch.int8, self._entries
        for name, (rows, *rest) in self.shapes.items():
            packed = torch.empty(rows, -(-math.prod(rest) // 4), dtype=torch.uint8, device="meta")
            self.register_buffer(f"{name}_packed", packed, persistent=False)

    def generate(self, device: torch.device | str) -> None:
        """As in `SharedBases`."""
        for name, shape in self.shapes.items():
            signs = entries_on("cpu", self.seed, name, shape, self._entries)
            setattr(self, f"{name}_packed", pack_signs(signs).to(device))

    def matrix(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As in `SharedBases`, a new tensor."""
        rows, *rest = shape
        full = self.shapes[name][1:]
        if tuple(rest[1:]) == full[1:]:  # what is wanted of a row is its beginning
            full = tuple(rest)
        signs = unpack_signs(getattr(self, f"{name}_packed")[:rows], math.prod(full)).view(rows, *full)
        return signs[:, *(slice(size) for size in rest)]


def pack_signs(signs: Tensor) -> Tensor:
    """Int8 signs (rows, ...) -> uint8 (rows, ceil(entries of a row / 4)), the first entry in the lowest bits.

    An entry is stored as its value plus 1; a row is filled up with zeros.
    """
    codes = (signs.flatten(1) + 1).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 4)).unflatten(1, (-1, 4))
    return codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6


def unpack_signs(packed: Tensor, size: int) -> Tensor:
    """The first `size` entries of every row that `pack_signs` packed: int8 (rows, size)."""
    packed = packed[:, : -(-size // 4)]
    codes = torch.stack([(packed >> places) & 3 for places in (0, 2, 4, 6)], dim=2)
    return codes.flatten(1)[:, :size].to(torch.int8) - 1


class RecomputedBases(_RemadeBases):
    """Nothing stored: the generator runs for each use. Otherwise as `SharedBases`."""

    def _register(self) -> None:
        self._keys = {name: stream_key(self.seed, name) for name in self.shapes}
        # An empty buffer follows the model to its device.
        self.register_buffer("place", torch.empty(0, dtype=torch.int8, device="meta"), persistent=False)

    def generate(self, device: torch.device | str) -> None:
        """Choose the device."""
        self.place = torch.empty(0, dtype=torch.int8, device=device)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As in `SharedBases`, a new tensor."""
        if torch.compiler.is_compiling():
            k = _integers_from(self._keys[name], self.place.device, tuple(shape))
            return self._entries.tensor_values(k).to(self._entries.dtype)
        return entries_on(self.device, self.seed, name, tuple(shape), self._entries)


class ImportedBases(SharedBases):
    """Frozen matrices drawn elsewhere, kept to the bit in the narrowest type; otherwise as `SharedBases`.

    Args:
        matrices: Name (a Python identifier) -> entries as `narrowed` returns them.
        units: Matrix name -> factor to multiply the entries by.
        device: Where the matrices live.
    """

    def __init__(
        self, matrices: Mapping[str, Tensor], units: Mapping[str, float], device: torch.device | str = "cpu"
    ) -> None:
        nn.Module.__init__(self)
        self.seed = None
        self._casts = {}
        self.units = dict(units)
        self._shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.to(device), persistent=False)

    def covers(self, needed: SharedBases) -> bool:
        """False: there is no telling which entries a seed would have given."""
        return False

    @property
    def checksum(self) -> str:
        """SHA-256 over names, shapes, types, units and the stored bytes."""
        digest = hashlib.sha256()
        for name, matrix in sorted(self.named_buffers()):
            digest.update(f"{name}{tuple(matrix.shape)}{matrix.dtype}{self.units[name]}".encode())
            digest.update(matrix.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def generate(self, device: torch.device | str) -> None:
        """There is no generator.

        Raises:
            ValueError: Always.
        """
        raise ValueError("imported bases cannot be made again; load them from their file")

    def extra_repr(self) -> str:
        """Shapes and types."""
        kinds = {name: (tuple(matrix.shape), matrix.dtype) for name, matrix in self.named_buffers()}
        return f"imported, {kinds}"


def narrowed(matrix: Tensor) -> tuple[Tensor, float]:
    """The narrowest exact storage of a floating matrix.

    Args:
        matrix: Any shape.

    Returns:
        Entries and a unit whose product in the matrix's type is the matrix: int8 signs where all nonzero magnitudes are
        equal; otherwise the first of bfloat16, float16 and float32 that holds every entry, with the unit 1; otherwise
        the matrix.
    """
    magnitudes = matrix.abs()
    unit = magnitudes.max() if matrix.numel() else magnitudes.new_zeros(())
    if unit > 0 and bool(((magnitudes == unit) | (magnitudes == 0)).all()):
        return matrix.sign().to(torch.int8), float(unit)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(matrix.to(dtype).to(matrix.dtype), matrix):
            return matrix.to(dtype), 1.0
    return matrix, 1.0


def is_imported(config: AdapterConfig) -> bool:
    """Whether the settings ask for matrices that only a file can give."""
    return getattr(config, "basis", None) == IMPORTED


def check_unseeded(config: AdapterConfig) -> None:
    """Refuse a seed beside imported matrices.

    Raises:
        ValueError: If it is not 0.
    """
    if is_imported(config) and config.seed != 0:
        raise ValueError(f"seed={config.seed!r} has no effect with basis={IMPORTED!r}")


def _blocks(shape: tuple[int, ...], elements: int = _BLOCK_ELEMENTS) -> Iterator[slice]:
    """Slices of the first axis that hold about `elements` entries each."""
    rows = max(1, elements // max(1, math.prod(shape[1:])))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))
