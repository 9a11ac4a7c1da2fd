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
it (`SharedBases.units`), so that signs stay exact.

Matrices that another library drew cannot be made again from a seed. `ImportedBases` keeps them as they are, in the
narrowest type that holds them exactly.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from randlora_core.adapters.config import AdapterConfig

BITS = 24
"""Random bits per entry."""

BASES = ("uniform", "normal", "binary", "ternary", "sparse", "very_sparse")
SPARSE_S = 6.0
IMPORTED = "imported"
"""Value of a config's `basis` that stands for `ImportedBases`: no seed gives the matrices."""

MIN_SPARSITY = 2.0

_GOLDEN = 0x9E3779B97F4A7C15
_CELLS = 2**BITS
_BLOCK_ELEMENTS = 2**17  # 1 MiB of 64-bit words: the mixing stays in a core's cache
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
    keys = _mix(np.array([seed], dtype=np.uint64))
    keys = _mix(keys + np.uint64(stream)).reshape(())
    for axis, size in enumerate(shape):
        index = np.arange(size, dtype=np.uint64)[rows if axis == 0 else slice(None)]
        keys = _mix(keys[..., None] + (index + np.uint64(1)) * np.uint64(_GOLDEN))
    return (keys >> np.uint64(64 - BITS)).astype(np.uint32)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, in place on a fresh array of 64-bit words (arithmetic modulo 2^64)."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


@dataclass(frozen=True)
class Distribution:
    """How integers become entries.

    Args:
        values: Maps uint32 integers to the stored entries, float32 or int8.
        dtype: Storage type.
        unit: Factor that makes the variance 1.
    """

    values: Callable[[np.ndarray], np.ndarray]
    dtype: torch.dtype
    unit: float = 1.0


def distribution(basis: str, sparsity: float | None = None) -> Distribution:
    """The distribution of a named basis.

    Args:
        basis: A name of `BASES`; "very_sparse" needs `sparsity`, since its s depends on the targets.
        sparsity: s of a ternary distribution, at least 2.
    """
    if basis == "uniform":
        return Distribution(_uniform_values, torch.bfloat16)
    if basis == "normal":
        return Distribution(_normal_values, torch.bfloat16)
    s = {"binary": MIN_SPARSITY, "sparse": SPARSE_S}.get(basis, sparsity)
    assert s is not None, basis
    return Distribution(functools.partial(_ternary_values, s=s), torch.int8, unit=math.sqrt(s / 2.0))


def _uniform_values(k: np.ndarray) -> np.ndarray:
    # 2k + 1 - 2^24 is exact in float32, so there is one rounding, that of the product.
    odd = 2 * k.astype(np.int32) + 1 - _CELLS
    return odd.astype(np.float32) * np.float32(math.sqrt(3.0) / _CELLS)


def _normal_values(k: np.ndarray) -> np.ndarray:
    table = normal_quantiles()
    return table[k >> np.uint32(BITS - int(math.log2(len(table))))]


def _ternary_values(k: np.ndarray, s: float) -> np.ndarray:
    threshold = round(_CELLS / s)
    return (k >= _CELLS - threshold).astype(np.int8) - (k < threshold).astype(np.int8)


@functools.cache
def normal_quantiles() -> np.ndarray:
    """The committed table: float32 (4096,), quantiles of N(0, 1) at (i + 1/2) / 4096, scaled to variance 1."""
    return load_file(_NORMAL_TABLE)["quantiles"]


@dataclass(frozen=True)
class Matrix:
    """A shared matrix to make: its shape, and a factor on entries of variance 1."""

    shape: tuple[int, ...]
    unit: float = 1.0


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
        self._checksum: str | None = None
        for name, matrix in matrices.items():
            self.register_buffer(name, torch.empty(matrix.shape, dtype=entries.dtype, device="meta"), persistent=False)
        if torch.device(device).type != "meta":
            self.generate(device)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Matrix name -> shape."""
        return {name: tuple(matrix.shape) for name, matrix in self.named_buffers()}

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
            matrix = torch.empty(shape, dtype=self._entries.dtype)
            for rows in _blocks(shape):
                matrix[rows] = torch.from_numpy(self._entries.values(integers(self.seed, name, shape, rows)))
            setattr(self, name, matrix.to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedBases:
        # Follow the model to a device, but not to a dtype: the stored type is the narrowest that is exact.
        for name, matrix in self._buffers.items():
            moved = fn(matrix)
            self._buffers[name] = moved if moved.dtype == matrix.dtype else matrix.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Seed and shapes."""
        return f"seed={self.seed}, shapes={self.shapes}, dtype={self._entries.dtype}"


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
        self.units = dict(units)
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.to(device), persistent=False)

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


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis that hold about `_BLOCK_ELEMENTS` entries each."""
    rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))
