"""Frozen random matrices, shared by all adapted layers of a model.

Only the seed has to be saved: every entry can be made again from it to the bit (`random_integers`, `distributions`),
and `SharedBases.checksum` proves that the same integers came back.

    SharedBases       keeps the matrices as they are
    PackedBases       keeps signs in 2 bits each, and unpacks them for each use
    RecomputedBases   keeps nothing, and makes the matrices anew for each use
    ImportedBases     keeps matrices that another library drew, which no seed gives, in the narrowest exact type
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from randlora_core.adapters.distributions import Distribution, entries_on
from randlora_core.adapters.random_integers import integers, integers_on, row_blocks, stream_key


@dataclass(frozen=True)
class Matrix:
    """A shared matrix to make.

    Args:
        shape: Its shape; of a block matrix that of its blocks, without the zeros between them.
        entries: Distribution of its entries.
        unit: Factor on entries of variance 1.
        groups: Number of groups whose blocks it holds. Matrices of different numbers are independent of one another.
    """

    shape: tuple[int, ...]
    entries: Distribution
    unit: float = 1.0
    groups: int = 1

    def stream(self, name: str) -> str:
        """Name of the stream of integers that the matrix called `name` is drawn from."""
        return name if self.groups == 1 else f"{name}/{self.groups}"

    def covers(self, needed: Matrix) -> bool:
        """Tells whether `needed`, drawn under the same name from the same seed, is the leading part of this one."""
        larger = all(have >= need for have, need in zip(self.shape, needed.shape, strict=False))
        return larger and len(self.shape) == len(needed.shape) and replace(needed, shape=self.shape) == self


Part = tuple[str, tuple[int, ...]]
"""The leading part of a shared matrix: the matrix's name, and the part's shape."""


class SharedBases(nn.Module):
    """Frozen random matrices that many layers use slices of.

    One object is a sub-module of every update that uses it, so a model holds one copy, also after deepcopy, pickling
    and `.to()`. Its buffers are not part of the state_dict, and a change of the model's dtype leaves them as they are.

    Args:
        seed: Seed of the generator.
        matrices: Name (a Python identifier) -> what to make.
        device: Where the matrices live; on "meta" nothing is generated until `generate`.

    Attributes:
        seed: As given.
        units: Matrix name -> factor to multiply the stored entries by.
    """

    def __init__(
        self,
        seed: int,
        matrices: Mapping[str, Matrix],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.seed = seed
        self.units = {name: matrix.unit * matrix.entries.unit for name, matrix in matrices.items()}
        self._matrices = dict(matrices)
        self._shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
        self._casts: dict[tuple[str, torch.dtype], tuple[Tensor, int | None, Tensor]] = {}
        self._checksum: str | None = None
        self._register()
        if torch.device(device).type != "meta":
            self.generate(device)

    def _register(self) -> None:
        """Register what is kept, as buffers on the meta device."""
        for name, matrix in self._matrices.items():
            buffer = torch.empty(matrix.shape, dtype=matrix.entries.dtype, device="meta")
            self.register_buffer(name, buffer, persistent=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Matrix name -> shape."""
        return self._shapes

    @property
    def device(self) -> torch.device:
        """The device that the matrices are on."""
        return next(self.buffers()).device

    def matrix(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The leading part of a matrix in its storage type; a view where matrices are stored as they are.

        Args:
            name: Name of the matrix.
            shape: At most the matrix's size along every axis.
        """
        return getattr(self, name)[tuple(slice(size) for size in shape)]

    def cast(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Gives the leading part of a matrix in another type, for methods whose matrices are small.

        It is a view of a cast of the whole matrix, which is kept for all layers and steps, one per type, until the
        matrix changes.
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
        """The casts of whole matrices that `cast` keeps."""
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
        """Tells whether every entry that `needed` would have is here, with the same factor and kept in the same way."""
        return (
            type(self) is type(needed)
            and self.seed == needed.seed
            and self._matrices.keys() == needed._matrices.keys()
            and all(self._matrices[name].covers(matrix) for name, matrix in needed._matrices.items())
        )

    @property
    def checksum(self) -> str:
        """SHA-256 over names, shapes and the generator's integers (32-bit little-endian), before any float or cast."""
        if self._checksum is None:
            digest = hashlib.sha256()
            for name, shape in sorted(self.shapes.items()):
                stream = self._matrices[name].stream(name)
                digest.update(f"{stream}{shape}".encode())
                for rows in row_blocks(shape):
                    digest.update(integers(self.seed, stream, shape, rows).astype("<u4").tobytes())
            self._checksum = digest.hexdigest()
        return self._checksum

    def generate(self, device: torch.device | str) -> None:
        """Make the matrices on `device`."""
        for name, matrix in self._matrices.items():
            drawn = entries_on("cpu", self.seed, matrix.stream(name), matrix.shape, matrix.entries)
            setattr(self, name, drawn.to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedBases:
        # Follow the model to a device, but not to a dtype: the stored type is the narrowest that is exact.
        self._casts.clear()
        for name, matrix in self._buffers.items():
            moved = fn(matrix)
            self._buffers[name] = moved if moved.dtype == matrix.dtype else matrix.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Seed, shapes and distributions."""
        kinds = {name: (matrix.shape, matrix.entries.name) for name, matrix in self._matrices.items()}
        return f"seed={self.seed}, {kinds}"


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
        for name, matrix in self._matrices.items():
            assert matrix.entries.dtype == torch.int8, matrix
            rows, *rest = matrix.shape
            packed = torch.empty(rows, -(-math.prod(rest) // 4), dtype=torch.uint8, device="meta")
            self.register_buffer(f"{name}_packed", packed, persistent=False)

    def generate(self, device: torch.device | str) -> None:
        """As in `SharedBases`."""
        for name, matrix in self._matrices.items():
            signs = entries_on("cpu", self.seed, matrix.stream(name), matrix.shape, matrix.entries)
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
        self._keys = {name: stream_key(self.seed, matrix.stream(name)) for name, matrix in self._matrices.items()}
        # An empty buffer follows the model to its device.
        self.register_buffer("place", torch.empty(0, dtype=torch.int8, device="meta"), persistent=False)

    def generate(self, device: torch.device | str) -> None:
        """Choose the device."""
        self.place = torch.empty(0, dtype=torch.int8, device=device)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As in `SharedBases`, a new tensor."""
        drawn = self._matrices[name]
        if torch.compiler.is_compiling():
            k = integers_on(self.place.device, self._keys[name], tuple(shape))
            return drawn.entries.tensor_values(k).to(drawn.entries.dtype)
        return entries_on(self.device, self.seed, drawn.stream(name), tuple(shape), drawn.entries)


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
