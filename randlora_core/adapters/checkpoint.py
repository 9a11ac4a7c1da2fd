"""Adapters on disk: `adapter_model.safetensors` and `adapter_config.json` in one directory.

The safetensors file holds what trained and nothing else: `<layer>.<parameter>` for the adapters, and the model's own
parameters that `trainable` named, with the buffers of such modules, under their names in the plain model. Bases that a
seed gives are not stored: the JSON file (`saved_config`) holds the seed and, by rank, the SHA-256 of the generator's
integers. Imported bases are stored once, as `bases/<rank>/<matrix>`.

Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from randlora_core.adapters import method_named
from randlora_core.adapters.bases import ImportedBases, SharedBases
from randlora_core.adapters.config import AdapterConfig, exactly, is_imported, is_number
from randlora_core.adapters.files import CONFIG_FILE, TENSORS_FILE, read_tensors, write_together
from randlora_core.adapters.inject import InjectionPlan, apply_injection, make_bases, plan_addition, plan_injection
from randlora_core.adapters.layer import DEFAULT_NAME
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.adapters.named import adapter_names, check_name, check_new_name
from randlora_core.adapters.peft_import import import_peft, is_peft_directory
from randlora_core.adapters.saved_config import SavedAdapter, read_config
from randlora_core.adapters.state import (
    AdapterState,
    active_name,
    adapter_bases,
    adapter_state,
    has_adapters,
    require_plain,
    require_unmerged,
)
from randlora_core.adapters.targets import adaptable_layers
from randlora_core.errors import near
from randlora_core.files import naming, read_bytes, require_folder

_BASES_PREFIX = "bases/"  # no parameter of a layer has such a name: a layer's name ends at a dot


def save_adapter(model: nn.Module, directory: str | os.PathLike[str], *, name: str | None = None) -> None:
    """Write a model's adapter, and the model's own parameters that trained with it, to a directory.

    Both files are written in full beside their places and then moved there: a write that fails (a full disk) leaves
    the files that were there.

    Args:
        model: A model with an adapter, merged or not.
        directory: Created where it does not exist.
        name: Name of the adapter; None stands for the active one.

    Raises:
        ValueError: If the model has no adapter, or none of this name, or a file is in the way of the directory.
        OSError: If the files cannot be written.
    """
    require_folder(Path(directory))
    name = active_name(model) if name is None else name
    state = adapter_state(model, name)
    tensors = {
        **dict(_adapter_parameters(model, state.shapes, name)),
        **{own: _own_parameter(model, own) for own in state.trainable},
    }
    checksums: dict[int, str] = {}
    units: dict[int, dict[str, float]] = {}
    if is_imported(state.config):
        tensors |= _imported_matrices(model, name)
        units = {rank: bases.units for rank, bases in adapter_bases(model, name).items()}
    else:
        needed = _needed_bases({layer: state.config.for_layer(layer) for layer in state.shapes}, state.shapes)
        for rank, bases in adapter_bases(model, name).items():  # of the sizes that this adapter needs for itself
            own = bases if bases.shapes == needed[rank].shapes else needed[rank]
            checksums[rank] = own.checksum
    data = serialize_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    saved = SavedAdapter(state.config, state.shapes, state.trainable, state.split_in_proj, checksums, units, sha256)
    text = json.dumps(saved.to_dict(), indent=2) + "\n"
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
        name = DEFAULT_NAME
    check_name(name)
    directory, is_further = Path(directory), has_adapters(model)
    swaps = is_further and name in adapter_names(model)
    if swaps:
        require_unmerged(model)
    elif is_further:
        check_new_name(model, name)
    if not directory.is_dir():
        raise ValueError(f"{directory}: there is no such directory")
    if is_peft_directory(directory):
        return _import_peft(model, directory, name)
    plan, tensors, bases = _read(model, directory, name if swaps else None)
    if not is_further:
        with torch.no_grad():
            for own in plan.state.trainable:
                _own_parameter(model, own).copy_(tensors[own])
    if not swaps:
        apply_injection(model, plan, bases, adapter=name)
    with torch.no_grad():
        for key, parameter in _adapter_parameters(model, plan.state.shapes, name):
            if swaps:
                parameter.copy_(tensors[key])
            else:
                parameter.data = tensors[key].to(parameter.device)
    return model


def _import_peft(model: nn.Module, directory: Path, name: str) -> nn.Module:
    """`import_peft`, where the model and the name allow it."""
    if has_adapters(model):
        raise ValueError(f"{directory}: an adapter of PEFT goes on a model without adapters; import, save and load it")
    if name != DEFAULT_NAME:
        raise ValueError(f"{directory}: an adapter of PEFT gets the name {DEFAULT_NAME!r}, not {name!r}")
    return import_peft(model, directory)


def _read(
    model: nn.Module, directory: Path, swapped: str | None
) -> tuple[InjectionPlan, dict[str, Tensor], dict[int, SharedBases] | None]:
    """Reads a directory and checks it against the model, which stays as it is.

    Args:
        model: As in `load_adapter`.
        directory: As in `load_adapter`.
        swapped: Name of the adapter whose values are to be exchanged, where that is so.

    Returns:
        The injection, the tensors of the file, and the bases of the file (None if they come from a seed).
    """
    with naming(directory / CONFIG_FILE):
        saved = read_config(directory / CONFIG_FILE)
        plan = _plan(model, saved)
        needed = _needed_bases(plan.configs, plan.state.shapes)
        _check_bases(needed, saved)
        if swapped is not None:
            _check_same_settings(plan.state, adapter_state(model, swapped), swapped)
    with naming(directory / TENSORS_FILE):
        tensors = _read_tensors(directory / TENSORS_FILE, saved.tensors_sha256, model, plan, needed)
        shared = {own: _own_parameter(model, own) for own in plan.state.trainable} if has_adapters(model) else {}
        if swapped is not None:
            shared |= _imported_matrices(model, swapped) if is_imported(saved.config) else {}
            for key, parameter in _adapter_parameters(model, plan.state.shapes, swapped):
                if tensors[key].dtype != parameter.dtype:
                    raise ValueError(f"tensor {key!r} is {tensors[key].dtype}, and {parameter.dtype} in the model")
        for key, tensor in shared.items():
            if not torch.equal(tensor.detach().cpu(), tensors[key].to(tensor.dtype)):
                raise ValueError(f"tensor {key!r} has other values than the model, where all adapters share it")
    if not is_imported(saved.config):
        return plan, tensors, None
    stored = {
        rank: ImportedBases({matrix: tensors[_basis_key(rank, matrix)] for matrix in units}, units)
        for rank, units in saved.units.items()
    }
    return plan, tensors, stored


def _plan(model: nn.Module, saved: SavedAdapter) -> InjectionPlan:
    """The injection that puts the saved adapter on `model`, refused where the model does not have the saved shapes."""
    layers = adaptable_layers(model, split_in_proj=saved.split_in_proj)
    for name, shape in saved.targets.items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}{near(name, layers)}")
        if layers[name] != shape:
            raise ValueError(f"layer {name!r} has the shape {layers[name]} in the model and {shape} in the file")
    targets = exactly(saved.targets)
    if has_adapters(model):
        plan = plan_addition(model, saved.config, targets)
        for key in ("trainable", "split_in_proj"):
            if getattr(saved, key) != getattr(plan.state, key):
                raise ValueError(f"{key} is {getattr(saved, key)!r}, and {getattr(plan.state, key)!r} in the model")
        return plan
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in saved.trainable:
        if name not in own:
            raise ValueError(f"the model has no parameter {name!r}{near(name, own)}")
    trainable = exactly(saved.trainable) if saved.trainable else ()
    return plan_injection(model, saved.config, targets, trainable=trainable, split_in_proj=saved.split_in_proj)


def _needed_bases(configs: Mapping[str, AdapterConfig], shapes: Mapping[str, Shape]) -> dict[int, SharedBases | None]:
    """Rank -> bases as the settings describe them, on the meta device."""
    return make_bases(configs, shapes, lambda name: torch.device("meta"))


def _check_bases(needed: Mapping[int, SharedBases | None], saved: SavedAdapter) -> None:
    """Refuse a file whose bases are not those that its settings need, or that this generator gives."""
    needed = {rank: bases for rank, bases in needed.items() if bases is not None}
    found = saved.units if is_imported(saved.config) else saved.checksums
    if needed.keys() != found.keys() or len(saved.units) + len(saved.checksums) != len(found):
        ranks = sorted([*saved.units, *saved.checksums])
        raise ValueError(f"bases has the ranks {ranks}, the settings need {sorted(needed)} from one source")
    for rank, bases in needed.items():
        if is_imported(saved.config):
            units = saved.units[rank]
            finite = all(is_number(unit) and math.isfinite(unit) for unit in units.values())
            if units.keys() != bases.shapes.keys() or not finite:
                raise ValueError(
                    f"bases: rank {rank} needs a finite unit for each of {sorted(bases.shapes)}, not {units!r}"
                )
        elif bases.checksum != saved.checksums[rank]:
            raise ValueError(
                f"the random bases of rank {rank} cannot be made again: seed {saved.config.seed} gives the SHA-256 "
                f"{bases.checksum}, the file says {saved.checksums[rank]}"
            )


def _check_same_settings(saved: AdapterState, there: AdapterState, name: str) -> None:
    """Refuse to swap adapters whose values have different meanings."""
    if saved.shapes != there.shapes:
        raise ValueError(f"its layers are not those of the adapter {name!r}; load it under another name")
    old, new = there.config.to_dict(), saved.config.to_dict()
    different = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if different:
        changes = ", ".join(f"{key}={new.get(key)!r} for {old.get(key)!r}" for key in different)
        raise ValueError(f"its settings are not those of the adapter {name!r} ({changes}); load it under another name")


def _read_tensors(
    path: Path, sha256: str, model: nn.Module, plan: InjectionPlan, needed: Mapping[int, SharedBases | None]
) -> dict[str, Tensor]:
    """The tensors of the file, with the names, shapes and kinds of numbers that the plan asks for."""
    expected = _expected_shapes(model, plan, needed)
    counters = {name for name in plan.state.trainable if not _own_parameter(model, name).is_floating_point()}
    data = read_bytes(path)
    tensors = read_tensors(data)
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        parts = [("lacks", missing), ("has the unexpected", unexpected)]
        reasons = [f"{verb} {', '.join(names[:3])} ({len(names)} in all)" for verb, names in parts if names]
        raise ValueError(f"it {' and '.join(reasons)}")
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


def _expected_shapes(
    model: nn.Module, plan: InjectionPlan, needed: Mapping[int, SharedBases | None]
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the file must hold."""
    expected = {name: tuple(_own_parameter(model, name).shape) for name in plan.state.trainable}
    if is_imported(plan.state.config):
        for rank, shared in needed.items():
            expected |= {_basis_key(rank, matrix): shape for matrix, shape in shared.shapes.items()}
    for name, config in plan.configs.items():
        shape = plan.state.shapes[name]
        weight = torch.empty(shape, device="meta")
        update = method_named(config.method).update.create(config, shape, needed[config.rank], weight)
        expected |= {f"{name}.{key}": tuple(parameter.shape) for key, parameter in update.named_parameters()}
    return expected


def _imported_matrices(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """An adapter's imported bases under their names in the file."""
    return {
        _basis_key(rank, name): matrix
        for rank, bases in adapter_bases(model, adapter).items()
        for name, matrix in bases.named_buffers()
    }


def _basis_key(rank: int, name: str) -> str:
    return f"{_BASES_PREFIX}{rank}/{name}"


def _adapter_parameters(model: nn.Module, layers: Iterable[str], adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    """An adapter's parameters on the layers of these names, under their names in the file."""
    for name in layers:
        for key, parameter in model.get_submodule(name).updates[adapter].named_parameters():
            yield f"{name}.{key}", parameter


def _own_parameter(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name in the plain model, which adapted layers and attention modules answer to."""
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute).as_subclass(Tensor)
