"""The files of an adapter's directory: their names, their tensors, and writing them together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from torch import Tensor

from randlora_core.files import atomic_files

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file's contents.

    Raises:
        ValueError: If it is something else.
    """
    try:
        return parse_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"it is damaged or not a safetensors file ({error})") from None


def check_same_tensors(stored: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a file that are not those of a model, name by name and shape by shape.

    Raises:
        ValueError: Naming the first one that differs, with both shapes.
    """
    for name in (*stored, *present):
        shapes = [tuple(tensors[name].shape) if name in tensors else "nothing" for tensors in (stored, present)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name!r} has shape {shapes[0]} there and {shapes[1]} in the model")


def write_together(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name and contents, all of them in full before the first one takes its place.

    Raises:
        OSError: If one cannot be written; the files that were there are still there, as far as none was replaced.
    """
    with atomic_files([directory / name for name in files]) as parts:
        for part, contents in zip(parts, files.values(), strict=True):
            part.write_bytes(contents)
