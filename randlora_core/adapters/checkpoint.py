"""Adapters on disk: `adapter_model.safetensors` and `adapter_config.json` in one directory.

The safetensors file holds what trained and nothing else: `<layer>.<parameter>` for the adapters, and the model's own
parameters that `trainable` named, with the buffers of such modules, under their names in the plain model. Seeded bases
are not stored; the JSON file holds their seed and the SHA-256 of the generator's integers, by rank. Imported bases are,
once, as `bases/<rank>/<matrix>`.
Keys of the JSON file:

    format            1                            method and its settings     as in the method's config
    library_version   that wrote it                split_in_proj               as given to inject_adapter
    targets           layer -> [out, in]           trainable                   names of the model's own tensors
    bases             rank -> {"source": "seed", "sha256": ...} or {"source": "file", "units": matrix -> factor}
    tensors_sha256    of the safetensors file, so that two files of different saves are told apart

Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from randlora_core.adapters import make_config, method_named
from randlora_core.adapters.bases import ImportedBases, SharedBases, is_imported
from randlora_core.adapters.config import AdapterConfig, exactly, is_number, near
from randlora_core.adapters.files import (
    CONFIG_FILE,
    TENSORS_FILE,
    naming,
    read_bytes,
    read_json,
    read_tensors,
    write_together,
)
from randlora_core.adapters.inject import (
    AdapterState,
    InjectionPlan,
    active_name,
    adaptable_layers,
    adapter_bases,
    adapter_state,
    apply_injection,
    has_adapters,
    make_bases,
    plan_addition,
    plan_injection,
    require_plain,
    require_unmerged,
)
from randlora_core.adapters.layer import DEFAULT_NAME, Shape
from randlora_core.adapters.named import adapter_names, check_name, check_new_name
from randlora_core.adapters.peft_import import import_peft, is_peft_directory

FORMAT = 1

_BASES_PREFIX = "bases/"  # no parameter of a layer has such a name: a layer's name ends at a dot

_OWN_KEYS = {"format", "library_version", "method", "targets", "trainable", "split_in_proj", "bases", "tensors_sha256"}


@dataclass(frozen=True)
class SavedAdapter:
    """The contents of `adapter_config.json`, checked in themselves but against no model.

    Args:
        config: The method's settings.
        targets: Layer's name -> (out, in).
        trainable: Names of the model's own parameters and buffers that are stored as well.
        split_in_proj: As given to `inject_adapter`.
        checksums: Rank -> SHA-256 of the integers of the seeded bases.
        units: Rank -> matrix -> factor on the stored entries of imported bases.
        tensors_sha256: SHA-256 of the tensors' file.
    """

    config: AdapterConfig
    targets: dict[str, Shape]
    trainable: tuple[str, ...]
    split_in_proj: bool
    checksums: dict[int, str]
    units: dict[int, dict[str, float]]
    tensors_sha256: str


def save_adapter(model: nn.Module, directory: str | os.PathLike[str], *, name: str | None = None) -> None:
    """Write a model's adapter, and the model's own parameters that trained with it, to a directory.

    Both files are written in full beside their places and then moved there: a write that fails (a full disk) leaves
    the files that were there.

    Args:
        model: A model with an adapter, merged or not.
        directory: Created where it does not exist.
        name: Name of the adapter; None stands for the active one.

    Raises:
        ValueError: If the model has no adapter, or none of this name.
        OSError: If the files cannot be written.
    """
    name = active_name(model) if name is None else name
    state = adapter_state(model, name)
    tensors = {
        **dict(_adapter_parameters(model, state.shapes, name)),
        **{own: _own_parameter(model, own) for own in state.trainable},
    }
    if is_imported(state.config):
        tensors |= _imported_matrices(model, name)
    data = serialize_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    description = {
        "format": FORMAT,
        "library_version": _library_version(),
        **state.config.to_dict(),
        "split_in_proj": state.split_in_proj,
        "targets": state.shapes,
        "trainable": state.trainable,
        "bases": _describe_bases(model, name),
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(description, indent=2) + "\n"
    write_together(Path(directory), {TENSORS_FILE: data, CONFIG_FILE: text.encode()})


def load_adapter(model: nn.Module, directory: str | os.PathLike[str], *, name: str | None = None) -> nn.Module:
    """Put a saved adapter on a model, in place; its outputs are then, to the bit, those of the saved model.

    On a model with adapters, the saved one comes as a further one that waits for `set_adapter`; or, where `name` is one
    of the model's, its values are exchanged in place (hot swap): a compiled model is not compiled again.

    A directory that PEFT wrote goes to `randlora_core.import_peft`.

    Everything is checked before the model is touched. Adapter parameters get the saved dtype; the model's own
    parameters keep theirs.

    Args:
        model: A model with the base weights that the adapter was trained on.
        directory: As given to `save_adapter`.
        name: Name of the adapter on the model; None stands for "default", on a model without adapters.

    Returns:
        `model`.

    Raises:
        ValueError: If a file is missing, damaged, of another save or from another method; if the model lacks a layer or
            parameter or has it in another shape; if the bases that the seed gives are not the saved ones; if the model
            has adapters, and `name` is None, or the model is merged, or the saved adapter cannot take the place of the
            one called `name` (other settings, layers or dtypes), or brings other values for the model's own parameters
            than it has. The message names the file and the reason, and the model is as it was.
    """
    if name is None:
        require_plain(model)
    name = DEFAULT_NAME if name is None else name
    check_name(name)
    if has_adapters(model):
        return _load_beside(model, Path(directory), name)
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: there is no such directory")
    if is_peft_directory(directory):
        if name != DEFAULT_NAME:
            raise ValueError(f"{directory}: an adapter of PEFT gets the name {DEFAULT_NAME!r}, not {name!r}")
        return import_peft(model, directory)
    with naming(directory / CONFIG_FILE):
        saved = read_config(directory / CONFIG_FILE)
        plan = _plan(model, saved)
        _check_bases(plan, saved)
    with naming(directory / TENSORS_FILE):
        tensors = _read_tensors(directory / TENSORS_FILE, saved.tensors_sha256, model, plan)
    _copy_own_parameters(model, {name: tensors[name] for name in plan.state.trainable})
    apply_injection(model, plan, _imported_bases(saved, tensors), adapter=name)
    _set_parameters(model, plan.state.shapes, name, tensors)
    return model


def _load_beside(model: nn.Module, directory: Path, name: str) -> nn.Module:
    """`load_adapter` on a model that has adapters."""
    if is_peft_directory(directory):
        raise ValueError(f"{directory}: an adapter of PEFT goes on a model without adapters; import, save and load it")
    swap = name in adapter_names(model)
    require_unmerged(model) if swap else check_new_name(model, name)
    with naming(directory / CONFIG_FILE):
        saved = read_config(directory / CONFIG_FILE)
        plan = _plan_beside(model, saved)
        _check_bases(plan, saved)
        if swap:
            _check_same(plan.state, adapter_state(model, name), name)
    with naming(directory / TENSORS_FILE):
        tensors = _read_tensors(directory / TENSORS_FILE, saved.tensors_sha256, model, plan)
        _check_same_values({own: _own_parameter(model, own) for own in plan.state.trainable}, tensors)
        if swap:
            _check_same_values(_imported_matrices(model, name) if is_imported(saved.config) else {}, tensors)
            _swap_values(dict(_adapter_parameters(model, plan.state.shapes, name)), tensors)
    if not swap:
        apply_injection(model, plan, _imported_bases(saved, tensors), adapter=name)
        _set_parameters(model, plan.state.shapes, name, tensors)
    return model


def _plan_beside(model: nn.Module, saved: SavedAdapter) -> InjectionPlan:
    _check_layers(model, saved)
    plan = plan_addition(model, saved.config, exactly(saved.targets))
    for key in ("trainable", "split_in_proj"):
        if getattr(saved, key) != getattr(plan.state, key):
            raise ValueError(f"{key} is {getattr(saved, key)!r}, and {getattr(plan.state, key)!r} in the model")
    return plan


def _check_same(saved: AdapterState, there: AdapterState, name: str) -> None:
    """Refuse to swap adapters whose values have different meanings."""
    if saved.shapes != there.shapes:
        raise ValueError(f"its layers are not those of the adapter {name!r}; load it under another name")
    old, new = there.config.to_dict(), saved.config.to_dict()
    different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if different:
        changes = ", ".join(f"{key}={new.get(key)!r} for {old.get(key)!r}" for key in different)
        raise ValueError(f"its settings are not those of the adapter {name!r} ({changes}); load it under another name")


def _check_same_values(there: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in there.items():
        if not torch.equal(tensor.detach().cpu(), tensors[name].to(tensor.dtype)):
            raise ValueError(f"tensor {name!r} has other values than the model, where all adapters share it")


@torch.no_grad()
def _swap_values(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if tensors[name].dtype != parameter.dtype:
            raise ValueError(f"tensor {name!r} is {tensors[name].dtype}, and {parameter.dtype} in the model")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _set_parameters(model: nn.Module, layers: Iterable[str], adapter: str, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in _adapter_parameters(model, layers, adapter):
        parameter.data = tensors[name].to(parameter.device)


def read_config(path: Path) -> SavedAdapter:
    """Read and check an `adapter_config.json`.

    Raises:
        ValueError: If it cannot be read, is not JSON, is another library's, or holds missing, unknown or bad values.
    """
    content = read_json(path)
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
        checksums=_parse_bases(content, "seed", "sha256", str),
        units=_parse_bases(content, "file", "units", dict),
        tensors_sha256=content["tensors_sha256"],
    )


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


def _parse_bases(content: Mapping[str, Any], source: str, key: str, expected: type) -> dict[int, Any]:
    """Rank -> value of `key`, for the bases of one source."""
    _check_type(content, "bases", dict)
    values = {}
    for rank, entry in content["bases"].items():
        if not (isinstance(entry, dict) and entry.get("source") in ("seed", "file") and rank.isdecimal()):
            raise ValueError(f"bases: the entry of rank {rank!r} must have the source 'seed' or 'file', not {entry!r}")
        if entry["source"] == source:
            if not isinstance(entry.get(key), expected):
                raise ValueError(f"bases: the entry of rank {rank!r} must hold {key}, not {entry!r}")
            values[int(rank)] = entry[key]
    return values


def _describe_bases(model: nn.Module, adapter: str) -> dict[int, dict[str, Any]]:
    """Rank -> origin of the bases; checksums are of the sizes that the adapter needs for itself."""
    state = adapter_state(model, adapter)
    found = adapter_bases(model, adapter)
    if is_imported(state.config):
        return {rank: {"source": "file", "units": bases.units} for rank, bases in found.items()}
    configs = {name: state.config.for_layer(name) for name in state.shapes}
    needed = make_bases(configs, state.shapes, lambda name: torch.device("meta"))
    own = {rank: bases if bases.shapes == needed[rank].shapes else needed[rank] for rank, bases in found.items()}
    return {rank: {"source": "seed", "sha256": bases.checksum} for rank, bases in own.items()}


def _imported_matrices(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    return {
        _basis_key(rank, name): matrix
        for rank, bases in adapter_bases(model, adapter).items()
        for name, matrix in bases.named_buffers()
    }


def _basis_key(rank: int, name: str) -> str:
    return f"{_BASES_PREFIX}{rank}/{name}"


def _imported_bases(saved: SavedAdapter, tensors: Mapping[str, Tensor]) -> dict[int, SharedBases] | None:
    """The bases of the file; None if they come from a seed."""
    if not is_imported(saved.config):
        return None
    return {
        rank: ImportedBases({name: tensors[_basis_key(rank, name)] for name in units}, units)
        for rank, units in saved.units.items()
    }


def _plan(model: nn.Module, saved: SavedAdapter) -> InjectionPlan:
    """The injection that puts the saved adapter on `model`, refused where the model does not have the saved shapes."""
    _check_layers(model, saved)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in saved.trainable:
        if name not in own:
            raise ValueError(f"the model has no parameter {name!r}{near(name, own)}")
    return plan_injection(
        model,
        saved.config,
        exactly(saved.targets),
        trainable=exactly(saved.trainable) if saved.trainable else (),
        split_in_proj=saved.split_in_proj,
    )


def _check_layers(model: nn.Module, saved: SavedAdapter) -> None:
    layers = adaptable_layers(model, split_in_proj=saved.split_in_proj)
    for name, shape in saved.targets.items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}{near(name, layers)}")
        if layers[name] != shape:
            raise ValueError(f"layer {name!r} has the shape {layers[name]} in the model and {shape} in the file")


def _check_bases(plan: InjectionPlan, saved: SavedAdapter) -> None:
    needed = _bases_needed(plan)
    found = saved.units if is_imported(saved.config) else saved.checksums
    if needed.keys() != found.keys() or len(saved.units) + len(saved.checksums) != len(found):
        ranks = sorted([*saved.units, *saved.checksums])
        raise ValueError(f"bases has the ranks {ranks}, the settings need {sorted(needed)} from one source")
    for rank, bases in needed.items():
        if is_imported(saved.config):
            _check_units(rank, saved.units[rank], bases)
        elif bases.checksum != saved.checksums[rank]:
            raise ValueError(
                f"the random bases of rank {rank} cannot be made again: seed {saved.config.seed} gives the SHA-256 "
                f"{bases.checksum}, the file says {saved.checksums[rank]}"
            )


def _bases_needed(plan: InjectionPlan) -> dict[int, SharedBases]:
    """Rank -> bases as the settings describe them, on the meta device."""
    bases = make_bases(plan.configs, plan.state.shapes, lambda name: torch.device("meta"))
    return {rank: shared for rank, shared in bases.items() if shared is not None}


def _check_units(rank: int, units: Mapping[str, Any], bases: SharedBases) -> None:
    if units.keys() != bases.shapes.keys() or not all(
        is_number(unit) and math.isfinite(unit) for unit in units.values()
    ):
        raise ValueError(f"bases: rank {rank} needs a finite unit for each of {sorted(bases.shapes)}, not {units!r}")


def _expected_shapes(model: nn.Module, plan: InjectionPlan) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the file must hold."""
    expected = {name: tuple(_own_parameter(model, name).shape) for name in plan.state.trainable}
    if is_imported(plan.state.config):
        for rank, shared in _bases_needed(plan).items():
            expected |= {_basis_key(rank, matrix): shape for matrix, shape in shared.shapes.items()}
    bases = make_bases(plan.configs, plan.state.shapes, lambda name: torch.device("meta"))
    for name, config in plan.configs.items():
        shape = plan.state.shapes[name]
        weight = torch.empty(shape, device="meta")
        update = method_named(config.method).update.create(config, shape, bases[config.rank], weight)
        expected |= {f"{name}.{key}": tuple(parameter.shape) for key, parameter in update.named_parameters()}
    return expected


def _read_tensors(path: Path, sha256: str, model: nn.Module, plan: InjectionPlan) -> dict[str, Tensor]:
    expected = _expected_shapes(model, plan)
    counters = {name for name in plan.state.trainable if not _own_parameter(model, name).is_floating_point()}
    data = read_bytes(path)
    tensors = read_tensors(data)
    _check_names(tensors, expected)
    for name, tensor in tensors.items():
        integral = name in counters or (tensor.dtype == torch.int8 and name.startswith(_BASES_PREFIX))
        if tuple(tensor.shape) != expected[name] or not (tensor.is_floating_point() or integral):
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


def _adapter_parameters(model: nn.Module, layers: Iterable[str], adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    """An adapter's parameters on the layers of these names, under their names in the file."""
    for name in layers:
        for key, parameter in model.get_submodule(name).updates[adapter].named_parameters():
            yield f"{name}.{key}", parameter


def _own_parameter(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name in the plain model, which adapted layers and attention modules answer to."""
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute).as_subclass(Tensor)


@torch.no_grad()
def _copy_own_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        _own_parameter(model, name).copy_(tensor)


def _library_version() -> str:
    try:
        return metadata.version("randlora")
    except metadata.PackageNotFoundError:
        return "unknown"
