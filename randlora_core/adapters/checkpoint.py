"""Adapters on disk: `adapter_model.safetensors` and `adapter_config.json` in one directory.

The safetensors file holds what trained and nothing else: `<layer>.<parameter>` for the adapters, and the model's own
parameters that `trainable` named under their names in the plain model. Seeded bases are not stored; the JSON file holds
their seed and the SHA-256 of the generator's integers, by rank. Keys of the JSON file:

    format            1                            method and its settings     as in the method's config
    library_version   that wrote it                split_in_proj               as given to inject_adapter
    targets           layer -> [out, in]           trainable                   names of the model's own parameters
    bases             rank -> {"source": "seed", "sha256": ...}
    tensors_sha256    of the safetensors file, so that two files of different saves are told apart

Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from randlora_core.adapters import METHODS, make_config
from randlora_core.adapters.config import AdapterConfig, near
from randlora_core.adapters.inject import (
    InjectionPlan,
    adaptable_layers,
    adapter_bases,
    adapter_state,
    apply_injection,
    make_bases,
    plan_injection,
    require_plain,
)
from randlora_core.adapters.layer import Shape

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
FORMAT = 1

_OWN_KEYS = {"format", "library_version", "method", "targets", "trainable", "split_in_proj", "bases", "tensors_sha256"}


@dataclass(frozen=True)
class SavedAdapter:
    """The contents of `adapter_config.json`, checked in themselves but against no model.

    Args:
        config: The method's settings.
        targets: Layer's name -> (out, in).
        trainable: Names of the model's own parameters that are stored as well.
        split_in_proj: As given to `inject_adapter`.
        checksums: Rank -> SHA-256 of the integers of the seeded bases.
        tensors_sha256: SHA-256 of the tensors' file.
    """

    config: AdapterConfig
    targets: dict[str, Shape]
    trainable: tuple[str, ...]
    split_in_proj: bool
    checksums: dict[int, str]
    tensors_sha256: str


def save_adapter(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a model's adapter, and the model's own parameters that trained with it, to a directory.

    Both files are written in full beside their places and then moved there: a write that fails (a full disk) leaves
    the files that were there.

    Args:
        model: A model with an adapter, merged or not.
        directory: Created where it does not exist.

    Raises:
        ValueError: If the model has no adapter.
        OSError: If the files cannot be written.
    """
    state = adapter_state(model)
    tensors = {
        **dict(_adapter_parameters(model, state.shapes)),
        **{name: _own_parameter(model, name) for name in state.trainable},
    }
    data = serialize_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    description = {
        "format": FORMAT,
        "library_version": _library_version(),
        **state.config.to_dict(),
        "split_in_proj": state.split_in_proj,
        "targets": state.shapes,
        "trainable": state.trainable,
        "bases": {rank: {"source": "seed", "sha256": bases.checksum} for rank, bases in adapter_bases(model).items()},
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(description, indent=2) + "\n"
    _write_together(Path(directory), {TENSORS_FILE: data, CONFIG_FILE: text.encode()})


def load_adapter(model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Put a saved adapter on a plain model, in place; its outputs are then, to the bit, those of the saved model.

    Everything is checked before the model is touched. Adapter parameters get the saved dtype; the model's own
    parameters keep theirs.

    Args:
        model: A model without adapters, with the base weights that the adapter was trained on.
        directory: As given to `save_adapter`.

    Returns:
        `model`.

    Raises:
        ValueError: If a file is missing, damaged, of another save or from another method; if the model lacks a layer or
            parameter or has it in another shape, or has adapters; if the bases that the seed gives are not the saved
            ones. The message names the file and the reason, and the model is as it was.
    """
    require_plain(model)
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: there is no such directory")
    with _naming(directory / CONFIG_FILE):
        saved = read_config(directory / CONFIG_FILE)
        plan = _plan(model, saved)
        _check_bases(plan, saved)
    with _naming(directory / TENSORS_FILE):
        tensors = _read_tensors(directory / TENSORS_FILE, saved.tensors_sha256, _expected_shapes(model, plan))
    _copy_own_parameters(model, {name: tensors[name] for name in plan.state.trainable})
    apply_injection(model, plan)
    for name, parameter in _adapter_parameters(model, plan.state.shapes):
        parameter.data = tensors[name].to(parameter.device)
    return model


def read_config(path: Path) -> SavedAdapter:
    """Read and check an `adapter_config.json`.

    Raises:
        ValueError: If it cannot be read, is not JSON, is another library's, or holds missing, unknown or bad values.
    """
    content = _parse_json(path)
    if "peft_type" in content:
        raise ValueError(f"this is an adapter of PEFT ({content['peft_type']}), in another format")
    missing = sorted(_OWN_KEYS - content.keys())
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}; this version reads {FORMAT}")
    config = make_config(content["method"], **{key: content[key] for key in content.keys() - _OWN_KEYS})
    _check_type(content, "split_in_proj", bool)
    _check_type(content, "tensors_sha256", str)
    return SavedAdapter(
        config=config,
        targets=_parse_targets(content),
        trainable=_parse_trainable(content),
        split_in_proj=content["split_in_proj"],
        checksums=_parse_checksums(content),
        tensors_sha256=content["tensors_sha256"],
    )


def _parse_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a JSON {type(content).__name__}, not an object")
    return content


def _check_type(content: Mapping[str, Any], key: str, expected: type) -> None:
    if not isinstance(content[key], expected):
        raise ValueError(f"{key} must be of type {expected.__name__}, not {content[key]!r}")


def _parse_targets(content: Mapping[str, Any]) -> dict[str, Shape]:
    _check_type(content, "targets", dict)
    for name, shape in content["targets"].items():
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
            raise ValueError(f"targets: the shape of {name!r} must be [out, in], not {shape!r}")
    if not content["targets"]:
        raise ValueError("targets is empty")
    return {name: tuple(shape) for name, shape in content["targets"].items()}


def _parse_trainable(content: Mapping[str, Any]) -> tuple[str, ...]:
    _check_type(content, "trainable", list)
    if not all(isinstance(name, str) for name in content["trainable"]):
        raise ValueError(f"trainable must be a list of names, not {content['trainable']!r}")
    return tuple(content["trainable"])


def _parse_checksums(content: Mapping[str, Any]) -> dict[int, str]:
    _check_type(content, "bases", dict)
    checksums = {}
    for rank, entry in content["bases"].items():
        if not (isinstance(entry, dict) and entry.get("source") == "seed" and rank.isdecimal()):
            raise ValueError(f"bases: the entry of rank {rank!r} must have the source 'seed', not {entry!r}")
        checksums[int(rank)] = entry.get("sha256")
    return checksums


def _plan(model: nn.Module, saved: SavedAdapter) -> InjectionPlan:
    """The injection that puts the saved adapter on `model`, refused where the model does not have the saved shapes."""
    layers = adaptable_layers(model, split_in_proj=saved.split_in_proj)
    for name, shape in saved.targets.items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}{near(name, layers)}")
        if layers[name] != shape:
            raise ValueError(f"layer {name!r} has the shape {layers[name]} in the model and {shape} in the file")
    own = dict(model.named_parameters())
    for name in saved.trainable:
        if name not in own:
            raise ValueError(f"the model has no parameter {name!r}{near(name, own)}")
    return plan_injection(
        model,
        saved.config,
        _exactly(saved.targets),
        trainable=_exactly(saved.trainable) if saved.trainable else (),
        split_in_proj=saved.split_in_proj,
    )


def _exactly(names: Iterable[str]) -> str:
    """A regular expression that matches these names and no others."""
    return "|".join(re.escape(name) for name in names)


def _check_bases(plan: InjectionPlan, saved: SavedAdapter) -> None:
    bases = make_bases(plan.configs, plan.state.shapes, lambda name: torch.device("meta"))
    checksums = {rank: shared.checksum for rank, shared in bases.items() if shared is not None}
    if checksums.keys() != saved.checksums.keys():
        raise ValueError(f"bases has the ranks {sorted(saved.checksums)}, the settings need {sorted(checksums)}")
    for rank, checksum in checksums.items():
        if checksum != saved.checksums[rank]:
            raise ValueError(
                f"the random bases of rank {rank} cannot be made again: seed {saved.config.seed} gives the SHA-256 "
                f"{checksum}, the file says {saved.checksums[rank]}"
            )


def _expected_shapes(model: nn.Module, plan: InjectionPlan) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the file must hold."""
    expected = {name: tuple(model.get_parameter(name).shape) for name in plan.state.trainable}
    bases = make_bases(plan.configs, plan.state.shapes, lambda name: torch.device("meta"))
    for name, config in plan.configs.items():
        shape = plan.state.shapes[name]
        weight = torch.empty(shape, device="meta")
        update = METHODS[config.method].update.create(config, shape, bases[config.rank], weight)
        expected |= {f"{name}.{key}": tuple(parameter.shape) for key, parameter in update.named_parameters()}
    return expected


def _read_tensors(path: Path, sha256: str, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    data = _read_bytes(path)
    try:
        tensors = parse_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"it is damaged or not a safetensors file ({error})") from None
    _check_names(tensors, expected)
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name] or not tensor.is_floating_point():
            raise ValueError(
                f"tensor {name!r} must be floating point of shape {expected[name]}, "
                f"not {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"its SHA-256 is not the one in {CONFIG_FILE}: the files are damaged or of different saves")
    return tensors


def _check_names(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        parts = [("lacks", missing), ("has the unexpected", unexpected)]
        reasons = [f"{verb} {', '.join(names[:3])} ({len(names)} in all)" for verb, names in parts if names]
        raise ValueError(f"it {' and '.join(reasons)}")


def _adapter_parameters(model: nn.Module, layers: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapters' parameters on the layers of these names, under their names in the file."""
    for name in layers:
        for key, parameter in model.get_submodule(name).update.named_parameters():
            yield f"{name}.{key}", parameter


def _own_parameter(model: nn.Module, name: str) -> Tensor:
    """A parameter of the model by its name in the plain model, which adapted layers and attention modules answer to."""
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute).as_subclass(Tensor)


@torch.no_grad()
def _copy_own_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        model.get_parameter(name).copy_(tensor)


def _library_version() -> str:
    try:
        return metadata.version("randlora")
    except metadata.PackageNotFoundError:
        return "unknown"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about a file's contents become ValueErrors that start with the file's name."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None


def _write_together(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write all files in full before the first one takes its place."""
    directory.mkdir(parents=True, exist_ok=True)
    places = {directory / f".{name}.{uuid.uuid4().hex}": directory / name for name in files}
    try:
        for temporary, place in places.items():
            with open(temporary, "xb") as file:
                file.write(files[place.name])
                file.flush()
                os.fsync(file.fileno())
        for temporary, place in places.items():
            os.replace(temporary, place)
    finally:
        for temporary in places:
            temporary.unlink(missing_ok=True)
