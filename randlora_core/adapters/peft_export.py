"""Writes adapters as Hugging Face PEFT does: RandLoRA, LoRA, rsLoRA, DoRA and VeRA, or any update as a LoRA.

PEFT's RandLoRA has alpha / r as its only scale and bases of variance 1, all of one rank. So an export folds a layer's
own factor (1 / sqrt(n), an alpha of its own) into lambda, multiplies the stored signs or bfloat16 values out in
float32, pads the bases with zeros to PEFT's sizes and writes them once. Names and sizes are in
`randlora_core.adapters.peft_format`. No PEFT is needed.

PEFT knows no groups: such bases are written with their zeros. Non-zeros are multiplied by a power of two, so that
bfloat16 holds them as it does here, and what is left of the unit goes into alpha.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from randlora_core import ops
from randlora_core.adapters.config import AdapterConfig, positive_integer
from randlora_core.adapters.delta import layer_delta
from randlora_core.adapters.files import CONFIG_FILE, TENSORS_FILE, write_together
from randlora_core.adapters.layer import AdapterLayer, Update
from randlora_core.adapters.layer_kinds import CONV1D, Shape
from randlora_core.adapters.low_rank import truncated
from randlora_core.adapters.merging import disable_adapter
from randlora_core.adapters.peft_format import (
    DIALECTS,
    MODEL_PREFIX,
    SHARED_PREFIX,
    exact_patterns,
    is_inside,
    module_names,
    saved_modules,
    shared_names,
    target_modules,
)
from randlora_core.adapters.state import AdapterState, adapter_layers, adapter_state
from randlora_core.files import require_folder

_WAYS_OUT = "export it with as_lora=<rank> or as_lora='energy:0.99', or merge the adapter and save the model"
_MANY_WEIGHTS = 10**8


def export_peft(
    model: nn.Module,
    directory: str | os.PathLike[str],
    as_lora: int | str | None = None,
    *,
    progress: bool | None = None,
) -> dict[str, float]:
    """Write a model's adapter as PEFT does, so that `PeftModel.from_pretrained` opens it.

    Outputs and numbers of trainable parameters are those of `model`, up to float32 rounding. Modules that train beside
    the adapter go into `modules_to_save`. When it opens a RandLoRA, PEFT 0.21.2 warns that a copy of the bases per
    module is missing; it uses the one that is there.

    Bases in groups are written with their zeros, 4 r d_max + 4 D_max n_max r bytes as for dense ones, and PEFT
    multiplies by them as by dense ones. `import_peft` and `accelerate_peft` recognise them.

    Args:
        model: A model with an adapter, merged or not.
        directory: Created where it does not exist.
        as_lora: Write the best LoRA of each layer's update instead, for engines that know no other method, or for
            methods that PEFT does not have: a rank, at most which every layer gets, or "energy:x" with x in (0, 1] for
            the smallest rank per layer that keeps x of the squared Frobenius norm. Up to about a quarter of a layer's
            smaller side a given rank goes by a randomised decomposition; the same model gives the same files.
        progress: Whether `as_lora` writes a line per layer to stderr. None writes them where the layers have 10^8
            weights or more together, which takes longer than a few seconds.

    Returns:
        Layer's name -> part of its update's Frobenius norm that was written; 1 without `as_lora`.

    Raises:
        ValueError: If a file is in the way of the directory, the model has no adapter, PEFT cannot express it (the
            message says what to do), `as_lora` is none of the above, or with it an update has values that are not
            finite. Nothing is written then.
        OSError: If the files cannot be written.

    Warns:
        UserWarning: If bases in groups are written as dense ones; their size is told. If `as_lora` is a rank above the
            smaller side of a layer, whose update is then written whole, at the rank of that side.
    """
    require_folder(Path(directory))
    state = adapter_state(model)
    _check_structure(model, state)
    modules = _modules_to_save(model, state)
    if as_lora is None:
        settings, tensors = _written_as_is(adapter_layers(model), state)
        kept = dict.fromkeys(state.shapes, 1.0)
    else:
        wanted = _parse_as_lora(as_lora)
        _warn_of_ranks_above(state.shapes, wanted.get("rank", 1))
        settings, tensors, kept = _written_as_lora(model, wanted, progress)
    for module in modules:
        values = model.get_submodule(module).state_dict()
        tensors |= {f"{MODEL_PREFIX}{module}.{key}": value for key, value in values.items()}
    data = serialize_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    text = json.dumps(_whole_config(model, state, settings, modules), indent=2) + "\n"
    write_together(Path(directory), {TENSORS_FILE: data, CONFIG_FILE: text.encode()})
    return kept


def _whole_config(
    model: nn.Module, state: AdapterState, settings: Mapping[str, Any], modules: list[str]
) -> dict[str, Any]:
    """Adds the fields that PEFT's configs of all methods have to the `settings` of one."""
    plain_names = [name for name, _ in model.named_modules() if name]
    return {
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "revision": None,
        "inference_mode": True,
        **settings,
        "target_modules": target_modules(tuple(state.shapes), plain_names),
        "modules_to_save": modules or None,
        "fan_in_fan_out": all(layer.kind is CONV1D for layer in adapter_layers(model).values()),
        "bias": "none",
    }


def _check_structure(model: nn.Module, state: AdapterState) -> None:
    """Refuse layers that PEFT cannot adapt as this library does."""
    names = module_names(model)
    for name in state.shapes:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise ValueError(
                f"layer {name!r} is a projection inside nn.MultiheadAttention, where PEFT cannot put this adapter; "
                "merge the adapter and save the model"
            )
        if len(uses := names[name]) > 1:
            raise ValueError(
                f"the model uses layer {name!r} as {', '.join(uses[1:])} too, where PEFT would not adapt it; "
                "merge the adapter and save the model"
            )


def _written_as_is(layers: Mapping[str, AdapterLayer], state: AdapterState) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Makes PEFT's settings and tensors for the adapter."""
    config = state.config
    if config.method not in DIALECTS:
        raise ValueError(f"PEFT has no method {config.method!r}; {_WAYS_OUT}")
    dialect = DIALECTS[config.method]
    updates = {name: layer.update for name, layer in layers.items()}
    write = {"lora": _lora_settings, "dora": _lora_settings, "randlora": _randlora_settings, "vera": _vera_settings}
    settings = write[config.method](config, updates)
    tensors = {
        f"{MODEL_PREFIX}{name}.{dialect.parameters[key]}": parameter.detach().float()
        for name, update in updates.items()
        for key, parameter in update.named_parameters()
    }
    if config.method == "randlora":
        _fold_scales(tensors, updates, settings["randlora_alpha"] / config.rank)
    if dialect.matrices:
        first = next(iter(updates.values()))
        sizes = _peft_sizes(config.method, config.rank, tuple(state.shapes.values()))
        for name, label in dialect.matrices.items():
            tensors[SHARED_PREFIX + label] = _padded(_written_matrix(first, name), sizes[name])
        if _groups(config) > 1:
            size = 4e-6 * sum(math.prod(size) for size in sizes.values())
            warnings.warn(
                f"PEFT knows no bases in groups: with their zeros they take {size:,.1f} MB of the file, and PEFT "
                "computes with them as with dense ones; import_peft and accelerate_peft recognise them",
                stacklevel=3,
            )
    return {"peft_type": dialect.peft_type, **settings}, tensors


def _lora_settings(config: AdapterConfig, updates: Mapping[str, Update]) -> dict[str, Any]:
    """Gives the fields of a LoraConfig."""
    ranks = {name: update.config.rank for name, update in updates.items()}
    alphas = {name: _integral(update.config.alpha) for name, update in updates.items()}
    default = _integral(_default_alpha(config))
    return {
        "r": config.rank,
        "lora_alpha": default,
        "lora_dropout": config.dropout,
        "use_rslora": getattr(config, "rank_stabilized", False),
        "use_dora": config.method == "dora",
        "rank_pattern": exact_patterns(ranks, config.rank),
        "alpha_pattern": exact_patterns(alphas, default),
        "init_lora_weights": True,
    }


def _randlora_settings(config: AdapterConfig, updates: Mapping[str, Update]) -> dict[str, Any]:
    """Gives the fields of a RandLoraConfig, and refuses what it cannot express."""
    for field, what in (
        ("magnitude", "a trained magnitude on RandLoRA"),
        ("distinct_a", "RandLoRA-a (distinct_a=True)"),
        ("num_bases", f"RandLoRA with fewer bases than full rank needs (num_bases={config.num_bases})"),
    ):
        if getattr(config, field):
            raise ValueError(f"PEFT cannot express {what}; {_WAYS_OUT}")
    _check_one_rank(config, updates)
    update = next(iter(updates.values()))
    written = math.prod(_written_units(update).values())
    return {
        "r": config.rank,
        "randlora_alpha": _integral(_default_alpha(config) * math.prod(update.bases.units.values()) / written),
        "randlora_dropout": config.dropout,
        "projection_prng_key": 0,
        "save_projection": True,
        "sparse": False,
        "very_sparse": False,
        "init_weights": True,
    }


def _vera_settings(config: AdapterConfig, updates: Mapping[str, Update]) -> dict[str, Any]:
    """Gives the fields of a VeraConfig."""
    _check_one_rank(config, updates)
    return {
        "r": config.rank,
        "vera_dropout": config.dropout,
        "d_initial": config.d_initial,
        "projection_prng_key": 0,
        "save_projection": True,
        "init_weights": True,
    }


def _check_one_rank(config: AdapterConfig, updates: Mapping[str, Update]) -> None:
    ranks = sorted({update.config.rank for update in updates.values()})
    if ranks != [config.rank]:
        raise ValueError(f"PEFT's {config.method} has the rank {config.rank} everywhere, got {ranks}; {_WAYS_OUT}")


def _fold_scales(tensors: dict[str, Tensor], updates: Mapping[str, Update], peft_scale: float) -> None:
    """Multiply every lambda by the layer's scale over the one that PEFT will use."""
    for name, update in updates.items():
        units = math.prod(_written_units(update).values())
        key = f"{MODEL_PREFIX}{name}.randlora_lambda"
        tensors[key] = (update.randlora_lambda.detach().double() * (update.scale / units / peft_scale)).float()


def _peft_sizes(method: str, rank: int, shapes: tuple[Shape, ...]) -> dict[str, tuple[int, ...]]:
    """Computes the sizes that PEFT gives the shared matrices of a method on layers of `shapes`."""
    out_max, in_max = (max(sizes) for sizes in zip(*shapes, strict=True))
    if method == "vera":
        return {"A": (rank, in_max), "B": (out_max, rank)}
    larger, smaller = max(out_max, in_max), min(out_max, in_max)
    return {"A": (rank, 1, smaller), "B": (larger, -(-smaller // rank), rank)}


def _written_matrix(update: Update, name: str) -> Tensor:
    """Gives a shared matrix for the file: with its zeros, multiplied out in float32."""
    bases, groups = update.bases, _groups(update.config)
    matrix = (bases.matrix(name, bases.shapes[name]).double() * _written_units(update)[name]).float()
    return matrix if groups == 1 else {"A": ops.dense_a, "B": ops.dense_b}[name](matrix, groups)


def _written_units(update: Update) -> dict[str, float]:
    """Gives the factors by which the shared matrices are multiplied for the file: matrix -> factor.

    They are the units, with which dense matrices have variance 1; of matrices in groups the nearest powers of two.
    """
    units = update.bases.units
    return (
        units if _groups(update.config) == 1 else {name: 2.0 ** round(math.log2(unit)) for name, unit in units.items()}
    )


def _groups(config: AdapterConfig) -> int:
    return getattr(config, "groups", 1)


def _padded(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Puts `matrix` into the corner of zeros of `shape`, which may have one more axis of size 1 in the middle."""
    matrix = matrix[:, None] if matrix.dim() < len(shape) else matrix
    result = matrix.new_zeros(shape)
    result[tuple(slice(size) for size in matrix.shape)] = matrix
    return result


def _written_as_lora(
    model: nn.Module, wanted: Mapping[str, Any], progress: bool | None
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]:
    """Makes a LoraConfig's fields and tensors for the truncated updates, and tells what each of them keeps."""
    layers, parts, begin = adapter_layers(model), {}, time.perf_counter()
    if progress is None:
        progress = sum(layer.out_features * layer.in_features for layer in layers.values()) >= _MANY_WEIGHTS
    with disable_adapter(model):
        for number, (name, layer) in enumerate(layers.items(), start=1):
            # One update at a time: together they are as large as the model in float32.
            parts[name] = part = truncated(_finite_delta(name, layer), **wanted)
            if progress:
                found = f"rank {len(part.a)} keeps {part.kept:.4f} of the norm"
                seconds = time.perf_counter() - begin
                print(f"as LoRA {number}/{len(layers)}, {seconds:.0f} s: {name}: {found}", file=sys.stderr, flush=True)
    ranks = {name: len(part.a) for name, part in parts.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    tensors = {}
    for name, part in parts.items():
        # One alpha for all layers, which every engine knows: a layer of another rank has the ratio in its B.
        tensors[f"{MODEL_PREFIX}{name}.lora_A.weight"] = part.a.float()
        tensors[f"{MODEL_PREFIX}{name}.lora_B.weight"] = (part.b * (ranks[name] / rank)).float()
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": exact_patterns(ranks, rank),
        "alpha_pattern": {},
        "init_lora_weights": True,
    }
    return settings, tensors, {name: part.kept for name, part in parts.items()}


def _finite_delta(name: str, layer: AdapterLayer) -> Tensor:
    delta = layer_delta(layer)
    if not delta.isfinite().all():
        raise ValueError(f"the update of layer {name!r} has values that are not finite; nothing was written")
    return delta


def _parse_as_lora(as_lora: int | str) -> dict[str, Any]:
    """Turns `as_lora` into arguments of `truncated`."""
    if not isinstance(as_lora, str):
        return {"rank": positive_integer("as_lora", as_lora)}
    kind, _, number = as_lora.partition(":")
    try:
        energy = float(number)
    except ValueError:
        energy = math.nan
    if kind != "energy" or not 0.0 < energy <= 1.0:
        raise ValueError(f"as_lora must be a rank or 'energy:x' with x in (0, 1], got {as_lora!r}")
    return {"energy": energy}


def _warn_of_ranks_above(shapes: Mapping[str, Shape], rank: int) -> None:
    """Warns, as `inject_adapter` does, of a rank that has no effect above a layer's smaller side."""
    if above := [name for name, shape in shapes.items() if rank > min(shape)]:
        name, shape = above[0], shapes[above[0]]
        warnings.warn(
            f"as_lora={rank} is above the smaller side of {len(above)} of {len(shapes)} layers, which get the rank of "
            f"that side: {name!r} of shape {shape} takes ranks from 1 to {min(shape)}",
            stacklevel=3,
        )


def _modules_to_save(model: nn.Module, state: AdapterState) -> list[str]:
    """Finds the modules that hold what trains beside the adapter, as PEFT can name them.

    Raises:
        ValueError: If a part of a module trains, parameters are shared, or the names would make PEFT take more.
    """
    trained = set(state.trainable)
    owners = {name.rpartition(".")[0] for name in trained}
    modules = sorted(owner for owner in owners if not any(owner.startswith(f"{other}.") for other in owners))
    for module in modules:
        _check_whole(model, module, trained)
    extra = sorted(set(saved_modules(modules, model)) - set(modules)) if modules else []
    excluded = [name for name in state.shapes if is_inside(modules, name)]
    if extra or excluded:
        raise ValueError(
            f"PEFT knows modules to save by the ends of their names, and {modules} would include "
            f"{', '.join([*extra, *excluded][:3])}; merge the adapter and save the model"
        )
    return modules


def _check_whole(model: nn.Module, module: str, trained: set[str]) -> None:
    parts = {f"{module}.{key}" for key, _ in model.get_submodule(module).named_parameters()} if module else set()
    if not parts or not parts <= trained:
        some = ", ".join(sorted(name for name in trained if name.startswith(module))[:3])
        raise ValueError(
            f"PEFT trains whole modules beside an adapter, and {module or 'the model'!r} trains in part ({some}); "
            "merge the adapter and save the model"
        )
    if shared := shared_names(model, parts):
        raise ValueError(f"{shared[0]!r} trains and is shared with other modules, where PEFT would train a copy of it")


def _default_alpha(config: AdapterConfig) -> float:
    return config.default_alpha_per_rank * config.rank if config.alpha is None else config.alpha


def _integral(number: float) -> float | int:
    """Turns a number that is whole up to rounding into an integer, since that is how PEFT annotates alpha."""
    return round(number) if math.isclose(number, round(number), rel_tol=1e-12) else number
