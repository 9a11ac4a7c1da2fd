"""Adapters from Hugging Face PEFT: RandLoRA, LoRA, rsLoRA, DoRA and VeRA.

Frozen matrices are cut to what the layers use, stored once in the narrowest exact type, and used as they are; of
matrices that are zero between groups only the blocks are stored and multiplied by. Names and sizes are in
`randlora_core.adapters.peft_format`. Only matrices that PEFT did not save need PEFT, to be drawn again.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randlora_core import ops
from randlora_core.adapters import make_config, method_named
from randlora_core.adapters.bases import ImportedBases, SharedBases, narrowed
from randlora_core.adapters.config import IMPORTED, AdapterConfig, exactly
from randlora_core.adapters.files import CONFIG_FILE, TENSORS_FILE, read_tensors
from randlora_core.adapters.inject import InjectionPlan, apply_injection, make_bases, plan_injection
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.adapters.peft_format import (
    ALL_LINEAR,
    DIALECTS,
    SHARED_PREFIX,
    Dialect,
    Tensors,
    check_settings,
    exact_patterns,
    is_targeted,
    method_of,
    module_names,
    pattern_value,
    saved_modules,
    shared_names,
    sort_tensors,
)
from randlora_core.adapters.randlora import RandLoRAConfig
from randlora_core.adapters.state import adapter_layers, require_plain
from randlora_core.adapters.targets import adaptable_layers
from randlora_core.errors import near
from randlora_core.files import naming, read_bytes, read_json

PICKLE_FILE = "adapter_model.bin"


def import_peft(model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Put an adapter that PEFT saved on a plain model, in place; outputs are PEFT's up to float32 rounding.

    RandLoRA's and VeRA's frozen matrices become the model's (`basis` of the config is "imported"), and `save_adapter`
    stores them once. Everything is checked before the model is touched.

    Args:
        model: A model without adapters, with the base weights that the adapter was trained on.
        directory: With `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        `model`; the adapter trains, and so do the modules of `modules_to_save`.

    Raises:
        ValueError: If a file is missing, damaged or a pickle; if the method or a setting is none that this library has;
            if tensors are missing, unexpected, of the wrong shape, or not those that the settings name in this model.
            The message names the file and the reason, and the model is as it was.

    Warns:
        UserWarning: If the directory lacks the frozen matrices (save_projection=False): PEFT's own generator draws them
            again then, and PEFT promises the same values neither on other devices nor in other versions of torch.
    """
    require_plain(model)
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: there is no such directory")
    content = read_json(directory / CONFIG_FILE)
    with naming(directory / CONFIG_FILE):
        dialect = _read_dialect(content)
    with naming(directory / TENSORS_FILE):
        tensors = sort_tensors(_read_safetensors(directory), dialect)
        _check_layers(model, content, tensors)
        own = _own_tensors(model, content, tensors)
    with naming(directory / CONFIG_FILE):
        config = _read_settings(content, tuple(tensors.parameters))
        if config.method == "randlora":
            layers = adaptable_layers(model)
            config = _with_groups(config, tensors.matrices, [layers[name] for name in tensors.parameters])
        trainable = sorted(own)
        plan = plan_injection(
            model, config, exactly(tensors.parameters), trainable=exactly(trainable) if trainable else ()
        )
    with naming(directory / TENSORS_FILE):
        _check_parameters(plan, tensors, dialect)
        bases = _read_bases(plan, content, tensors, dialect)
    with torch.no_grad():
        apply_injection(model, plan, bases)
        for name, layer in adapter_layers(model).items():
            for key, parameter in layer.update.named_parameters():
                parameter.copy_(tensors.parameters[name][key])
        for name, tensor in own.items():
            _own_tensor(model, name).copy_(tensor)
    return model


def is_peft_directory(directory: Path) -> bool:
    """Whether a directory holds an adapter in PEFT's format."""
    try:
        return "peft_type" in read_json(directory / CONFIG_FILE)
    except ValueError:
        return False


def _read_dialect(content: Mapping[str, Any]) -> Dialect:
    if "peft_type" not in content:
        raise ValueError("it has no peft_type: it is not an adapter of PEFT")
    dialect = DIALECTS[method_of(content)]
    required = ("r", "target_modules", *((f"{dialect.prefix}_alpha",) if dialect.prefix != "vera" else ()))
    missing = [field for field in required if field not in content]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    check_settings(content, dialect)
    return dialect


def _read_safetensors(directory: Path) -> dict[str, Tensor]:
    if not (directory / TENSORS_FILE).exists() and (directory / PICKLE_FILE).exists():
        raise ValueError(
            f"there is only {PICKLE_FILE}, a pickle, which can run any code when it is opened; where you trust it, "
            "load it in PEFT and save it again with safe_serialization=True"
        )
    return read_tensors(read_bytes(directory / TENSORS_FILE))


def _check_layers(model: nn.Module, content: Mapping[str, Any], tensors: Tensors) -> None:
    """Refuse tensors for other layers than the settings name in this model."""
    layers = adaptable_layers(model)
    modules = module_names(model)
    if not tensors.parameters:
        raise ValueError(f"it has no tensor of the method {content['peft_type']}")
    for name in tensors.parameters:
        if name not in layers or name not in modules:
            raise ValueError(f"it has tensors of {name!r}, which is no linear layer of the model{near(name, layers)}")
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise ValueError(f"it has tensors of {name!r}, a projection inside nn.MultiheadAttention")
        if len(modules[name]) > 1:
            raise ValueError(
                f"the model uses layer {name!r} as {', '.join(modules[name][1:])} too, where PEFT does not"
            )
    if content["target_modules"] in (None, ALL_LINEAR):
        return
    targeted = {name for name in modules if name in layers and is_targeted(content, name)}
    if missing := sorted(targeted - tensors.parameters.keys()):
        raise ValueError(f"it lacks the tensors of {', '.join(missing[:3])} ({len(missing)} in all)")
    if unexpected := sorted(tensors.parameters.keys() - targeted):
        raise ValueError(f"it has tensors of {unexpected[0]!r}, which the settings in {CONFIG_FILE} do not name")


def _own_tensors(model: nn.Module, content: Mapping[str, Any], tensors: Tensors) -> dict[str, Tensor]:
    """The values of modules that were trained whole: name in the plain model -> tensor.

    Raises:
        ValueError: If a module lacks a tensor or has it in another shape, shares one, or a tensor belongs to none of
            them and differs from the model's.
    """
    modules = content.get("modules_to_save") or []
    modules = saved_modules([modules] if isinstance(modules, str) else modules, model)
    needed = {
        f"{module}.{key}": value
        for module in modules
        for key, value in model.get_submodule(module).state_dict().items()
    }
    if missing := sorted(needed.keys() - tensors.others.keys()):
        raise ValueError(f"it lacks {', '.join(missing[:3])}, of modules_to_save")
    if shared := shared_names(model, set(needed)):
        raise ValueError(
            f"{shared[0]!r} of modules_to_save is shared with other modules, where PEFT trains a copy of it"
        )
    present = model.state_dict()
    for name, tensor in tensors.others.items():
        value = present.get(name.replace(".base_layer.", "."))
        if name in needed and tensor.shape != value.shape:
            raise ValueError(f"tensor {name!r} has the shape {tuple(tensor.shape)}, the model's {tuple(value.shape)}")
        if name not in needed and not (value is not None and torch.equal(value.cpu().to(tensor.dtype), tensor)):
            raise ValueError(f"it has the unexpected tensor {name!r}")
    return {name: tensors.others[name] for name in needed}


def _read_settings(content: Mapping[str, Any], names: tuple[str, ...]) -> AdapterConfig:
    """Our config for layers of these names."""
    method, rank = method_of(content), content["r"]
    if method == "vera":
        return make_config(
            "vera",
            rank=rank,
            dropout=content.get("vera_dropout", 0.0),
            d_initial=content.get("d_initial", 0.1),
            basis=IMPORTED,
        )
    if method == "randlora":
        return make_config(
            "randlora",
            rank=rank,
            alpha=content["randlora_alpha"],
            dropout=content.get("randlora_dropout", 0.0),
            basis=IMPORTED,
        )
    ranks = {name: pattern_value(content.get("rank_pattern") or {}, name, rank) for name in names}
    alpha = content["lora_alpha"]
    alphas = {name: pattern_value(content.get("alpha_pattern") or {}, name, alpha) for name in names}
    fields: dict[str, Any] = {"rank_stabilized": bool(content.get("use_rslora"))}
    if method == "dora" and fields.pop("rank_stabilized"):  # our DoRA has alpha / r as its only scale
        alphas = {name: alphas[name] * math.sqrt(ranks[name]) for name in names}
        alpha = alpha * math.sqrt(rank)
    return make_config(
        method,
        rank=rank,
        alpha=alpha,
        dropout=content.get("lora_dropout", 0.0),
        rank_pattern=exact_patterns(ranks, rank),
        alpha_pattern=exact_patterns(alphas, alpha),
        **fields,
    )


def _with_groups(
    config: RandLoRAConfig, matrices: Mapping[str, Mapping[str, Tensor]], shapes: Sequence[Shape]
) -> RandLoRAConfig:
    """The settings with the number of groups between which the file's matrices are zero.

    Matrices that are missing or of unexpected shapes count as dense ones here, and are looked at later.
    """
    a, b = (next(iter(matrices.get(name, {}).values()), None) for name in ("A", "B"))
    expected = a is not None and b is not None and a.dim() == b.dim() == 3 and len(a) == b.shape[2] == config.rank
    groups = ops.find_groups(a[:, 0], b) if expected else 1
    if groups == 1:
        return config
    fewest = min(config.bases_on(shape) for shape in shapes)
    return dataclasses.replace(config, groups=groups, allow_rank_loss=fewest < groups)


def _check_parameters(plan: InjectionPlan, tensors: Tensors, dialect: Dialect) -> None:
    """Refuse parameters that are missing or have another shape than the settings and the model need."""
    bases = make_bases(plan.configs, plan.state.shapes, lambda name: torch.device("meta"))
    for name, config in plan.configs.items():
        shape = plan.state.shapes[name]
        meta = torch.empty(shape, device="meta")
        update = method_named(config.method).update.create(config, shape, bases[config.rank], meta)
        for key, parameter in update.named_parameters():
            tensor, label = tensors.parameters[name].get(key), f"{name}.{dialect.parameters[key]}"
            if tensor is None:
                raise ValueError(f"it lacks the tensor {label!r}")
            if tensor.shape != parameter.shape or not tensor.is_floating_point():
                raise ValueError(
                    f"tensor {label!r} must be floating point of shape {tuple(parameter.shape)} for rank {config.rank} "
                    f"and a layer of shape {shape}, not {tensor.dtype} of shape {tuple(tensor.shape)}"
                )


def _read_bases(
    plan: InjectionPlan, content: Mapping[str, Any], tensors: Tensors, dialect: Dialect
) -> dict[int, SharedBases] | None:
    """The frozen matrices, cut to what the layers use; None for methods without."""
    if not dialect.matrices:
        return None
    rank = plan.state.config.rank
    if missing := [dialect.matrices[name] for name in dialect.matrices if name not in tensors.matrices]:
        if content.get("save_projection", True):
            raise ValueError(f"it lacks {', '.join(SHARED_PREFIX + name for name in missing)}")
        matrices = _redraw(content, dialect, tuple(plan.state.shapes.values()))
    else:
        matrices = {name: _single(copies) for name, copies in tensors.matrices.items()}
    shapes = make_bases(plan.configs, plan.state.shapes, lambda name: torch.device("meta"))[rank].shapes
    needed = {"A": (rank, *shapes["A"][1:]), "B": (*shapes["B"][:-1], rank)}  # with the zeros between groups
    groups, blocks_of = getattr(plan.state.config, "groups", 1), {"A": ops.blocks_of_a, "B": ops.blocks_of_b}
    stored, units = {}, {}
    for name, matrix in matrices.items():
        matrix = _cut(dialect.matrices[name], matrix, needed[name], rank)
        stored[name], units[name] = narrowed(matrix if groups == 1 else blocks_of[name](matrix, groups))
    return {rank: ImportedBases(stored, units)}


def _single(copies: Mapping[str, Tensor]) -> Tensor:
    """The one matrix of which the file may hold a copy per layer.

    Raises:
        ValueError: If the copies differ.
    """
    first, *others = copies
    for other in others:
        if not torch.equal(copies[first], copies[other]):
            raise ValueError(f"{first!r} and {other!r} must be copies of one matrix, and differ")
    return copies[first]


def _cut(label: str, matrix: Tensor, needed: tuple[int, ...], rank: int) -> Tensor:
    """The part of PEFT's matrix that the layers use, in the shape that they use it in."""
    peft_needs = (needed[0], 1, needed[1]) if label == "randlora_A" else needed
    fits = matrix.dim() == len(peft_needs) and all(m >= n for m, n in zip(matrix.shape, peft_needs, strict=True))
    axis = {"randlora_A": 0, "randlora_B": 2, "vera_A": 0, "vera_B": 1}[label]
    if not fits or matrix.shape[axis] != rank or not matrix.is_floating_point():
        raise ValueError(
            f"{SHARED_PREFIX + label!r} must be floating point and at least of shape {peft_needs} for rank {rank} and "
            f"these layers, not {matrix.dtype} of shape {tuple(matrix.shape)}"
        )
    return matrix[tuple(slice(size) for size in peft_needs)].reshape(needed).contiguous()


def _redraw(content: Mapping[str, Any], dialect: Dialect, shapes: tuple[Shape, ...]) -> dict[str, Tensor]:
    """Shared matrices as PEFT makes them from its key, for a file that does not hold them."""
    try:
        import peft
    except ImportError:
        raise ValueError(
            "it lacks the frozen matrices (save_projection=false), and peft, which could draw them, is not installed: "
            'pip install "randlora[peft]"'
        ) from None
    warnings.warn(
        f"the adapter was saved without its frozen matrices: they are drawn again by PEFT {peft.__version__} from "
        f"projection_prng_key={content.get('projection_prng_key', 0)}. PEFT does not promise the same values on all "
        "devices and in all versions of torch; if they differ, the adapter's update is noise. Compare a known output.",
        stacklevel=4,
    )
    out_max, in_max = (max(sizes) for sizes in zip(*shapes, strict=True))
    kind = {"RANDLORA": peft.RandLoraConfig, "VERA": peft.VeraConfig}[dialect.peft_type]
    flags = {flag: content[flag] for flag in ("sparse", "very_sparse") if content.get(flag)}
    key = content.get("projection_prng_key", 0)
    config = kind(r=content["r"], target_modules=["layer"], projection_prng_key=key, **flags)
    largest = nn.ModuleDict({"layer": nn.utils.skip_init(nn.Linear, in_max, out_max)})
    tuner = peft.get_peft_model(largest, config).base_model
    return {name: getattr(tuner, label)["default"].detach() for name, label in dialect.matrices.items()}


def _own_tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of the model by its name."""
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute)
