"""The contents of `adapter_config.json`, as this library writes it and reads it again.

Keys of the file:

    format            1                            method and its settings     as in the method's config
    library_version   that wrote it                split_in_proj               as given to inject_adapter
    targets           layer -> [out, in]           trainable                   names of the model's own tensors
    bases             rank -> {"source": "seed", "sha256": ...} or {"source": "file", "units": matrix -> factor}
    tensors_sha256    of the safetensors file, so that two files of different saves are told apart
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from randlora_core.adapters import make_config
from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.files import parse_json, read_bytes

FORMAT = 1

_OWN_KEYS = {"format", "library_version", "method", "targets", "trainable", "split_in_proj", "bases", "tensors_sha256"}


@dataclass(frozen=True)
class SavedAdapter:
    """The values in the file, checked in themselves but against no model.

    Args:
        config: The method's settings.
        targets: Layer's name -> (out, in).
        trainable: Names of the model's own parameters and buffers that are stored as well.
        split_in_proj: As given to `inject_adapter`.
        checksums: Rank -> SHA-256 of the integers of the bases that come from a seed.
        units: Rank -> matrix -> factor on the entries of the bases that are stored.
        tensors_sha256: SHA-256 of the tensors' file.
    """

    config: AdapterConfig
    targets: dict[str, Shape]
    trainable: tuple[str, ...]
    split_in_proj: bool
    checksums: dict[int, str]
    units: dict[int, dict[str, float]]
    tensors_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The file's contents."""
        try:
            version = metadata.version("randlora")
        except metadata.PackageNotFoundError:
            version = "unknown"
        return {
            "format": FORMAT,
            "library_version": version,
            **self.config.to_dict(),
            "split_in_proj": self.split_in_proj,
            "targets": self.targets,
            "trainable": self.trainable,
            "bases": {
                **{rank: {"source": "seed", "sha256": checksum} for rank, checksum in self.checksums.items()},
                **{rank: {"source": "file", "units": units} for rank, units in self.units.items()},
            },
            "tensors_sha256": self.tensors_sha256,
        }


def read_config(path: Path) -> SavedAdapter:
    """Read and check an `adapter_config.json`.

    Raises:
        ValueError: If it cannot be read, is not JSON, is another library's, or holds missing, unknown or bad values;
            the message has the reason without the file's name, for use within `naming`.
    """
    content = parse_json(read_bytes(path))
    if "peft_type" in content:
        raise ValueError(f"this is an adapter of PEFT ({content['peft_type']}), in another format")
    missing = sorted(_OWN_KEYS - content.keys())
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}; this version reads {FORMAT}")
    config = make_config(content["method"], **{key: content[key] for key in content.keys() - _OWN_KEYS})
    types = {"split_in_proj": bool, "tensors_sha256": str, "targets": dict, "trainable": list, "bases": dict}
    for key, expected in types.items():
        if not isinstance(content[key], expected):
            raise ValueError(f"{key} must be of type {expected.__name__}, not {content[key]!r}")
    for name, shape in content["targets"].items():
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
            raise ValueError(f"targets: the shape of {name!r} must be [out, in], not {shape!r}")
    if not content["targets"]:
        raise ValueError("targets is empty")
    if not all(isinstance(name, str) for name in content["trainable"]):
        raise ValueError(f"trainable must be a list of names, not {content['trainable']!r}")
    return SavedAdapter(
        config=config,
        targets={name: tuple(shape) for name, shape in content["targets"].items()},
        trainable=tuple(content["trainable"]),
        split_in_proj=content["split_in_proj"],
        checksums=_bases_from(content["bases"], "seed", "sha256", str),
        units=_bases_from(content["bases"], "file", "units", dict),
        tensors_sha256=content["tensors_sha256"],
    )


def _bases_from(bases: Mapping[str, Any], source: str, key: str, expected: type) -> dict[int, Any]:
    """Rank -> value of `key`, for the bases of one source."""
    values = {}
    for rank, entry in bases.items():
        if not (isinstance(entry, dict) and entry.get("source") in ("seed", "file") and rank.isdecimal()):
            raise ValueError(f"bases: the entry of rank {rank!r} must have the source 'seed' or 'file', not {entry!r}")
        if entry["source"] == source:
            if not isinstance(entry.get(key), expected):
                raise ValueError(f"bases: the entry of rank {rank!r} must hold {key}, not {entry!r}")
            values[int(rank)] = entry[key]
    return values
