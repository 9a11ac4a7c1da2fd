"""Applies a method to a task's model, and keeps and restores what the method trained."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize_tensors
from torch import Tensor

from randlora_core.adapters import make_config
from randlora_core.adapters.checkpoint import load_adapter, save_adapter
from randlora_core.adapters.files import check_same_tensors
from randlora_core.adapters.inject import inject_adapter, resolve
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.adapters.state import adapter_state, count_parameters, has_adapters
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import Task
from randlora_core.experiment.loop.seeding import seed_global
from randlora_core.experiment.peft_tuners import (
    PEFT,
    inject_tuner,
    load_tuner,
    save_tuner,
    try_tuner,
    tuner_parameters,
)
from randlora_core.files import atomic_file, naming, read_json

DELTA_FILE = "delta.safetensors"
HEAD_FILE = "head.safetensors"
RUN_FILE = "run.json"


def check_method(config: RunConfig, shapes: Mapping[str, Shape]) -> None:
    """Refuses what `apply_method` would refuse on layers of these shapes, so that a run need not begin to fail.

    Args:
        config: A run with an adapter.
        shapes: (out, in) of every layer that the adapter goes on, by name.

    Raises:
        ValueError: As `apply_method`.

    Warns:
        UserWarning: As `inject_adapter`, such as of LoRA's rank above a layer's smaller side; once in a process.
    """
    adapter = config.adapter
    if adapter.method == PEFT:
        try_tuner(adapter.options, shapes.values())
    else:
        options = {name: value for name, value in adapter.options.items() if name != "seed"}
        _check_adapter(adapter.method, json.dumps(options), tuple(shapes.items()))


@functools.lru_cache(maxsize=1024)
def _check_adapter(method: str, options: str, shapes: tuple[tuple[str, Shape], ...]) -> None:
    """Once for the seeds and data of a sweep."""
    resolve(make_config(method, **json.loads(options)), dict(shapes))


def apply_method(task: Task, config: RunConfig) -> None:
    """Freezes the pre-trained model and makes trainable what the method trains, in place.

    Full fine-tuning trains the whole model, an adapter its own parameters, any other method nothing of the model.
    What the task adds to the model, such as a head, stays trainable.

    Raises:
        ValueError: The method does not fit the model, such as a rank beyond its layers or a target it does not have.
    """
    task.model.requires_grad_(config.adapter.method == "full")
    seed_global(config.seed, "initialisation")
    if config.is_adapted:
        targets = config.adapter.targets if config.adapter.targets is not None else task.default_targets
        if config.adapter.method == PEFT:
            inject_tuner(task.model, config.adapter.options, targets)
        else:
            inject_adapter(task.model, make_config(config.adapter.method, **config.adapter.options), targets)
    for name in task.frozen:
        task.model.get_parameter(name).requires_grad_(False)
    if not config.is_trained:
        task.module.requires_grad_(False)


def parameter_section(task: Task) -> dict[str, Any]:
    """The record's section on parameters: trainable, total, and trainable ones per layer.

    For RandLoRA it has the number of groups of the bases as well, since that of groups=max depends on the model.
    """
    counts = count_parameters(task.module)
    per_layer = {**counts.per_layer, **tuner_parameters(task.module)}
    section = {"trainable": counts.trainable, "total": counts.total, "per_layer": per_layer}
    if has_adapters(task.model) and hasattr(config := adapter_state(task.model).config, "groups"):
        section["groups"] = config.groups
    return section


def original_weights(task: Task, config: RunConfig) -> dict[str, Tensor]:
    """A copy of the weights that full fine-tuning is going to change, where it has to be kept as a difference."""
    if not (config.save.adapter and config.adapter.method == "full"):
        return {}
    return {name: value.detach().cpu().clone() for name, value in _changed_by_full(task).items()}


def save_weights(
    directory: Path,
    task: Task,
    config: RunConfig,
    original: Mapping[str, Tensor],
    *,
    recorded: Mapping[str, Any],
    weights: str,
) -> None:
    """Keeps what was trained: an adapter, full fine-tuning's difference to the pre-trained model, the task's head.

    Args:
        directory: Gets the files.
        task: The trained task.
        config: The run's configuration.
        original: What `original_weights` gave before training.
        recorded: The configuration as the record carries it, from which `load_weights`' caller builds the task again.
        weights: The identity of the pre-trained weights, which must be the same then.
    """
    if config.is_adapted:
        save = save_tuner if config.adapter.method == PEFT else save_adapter
        save(task.model, directory)
    if original:
        delta = {name: value.detach().cpu() - original[name] for name, value in _changed_by_full(task).items()}
        _write(directory / DELTA_FILE, delta)
    if head := _head(task):
        _write(directory / HEAD_FILE, head)
    kept = {"config": recorded, "weights": weights, "outputs": list(task.outputs)}
    with atomic_file(directory / RUN_FILE) as part:
        part.write_text(json.dumps(kept, indent=1), encoding="utf-8")


@torch.no_grad()
def load_weights(directory: Path, task: Task, config: RunConfig) -> None:
    """Restores what `save_weights` kept, in place, on a task that is built anew.

    Raises:
        ValueError: A file is missing or does not fit the model; the task is left as it was.
    """
    run_file = directory / RUN_FILE
    outputs = tuple(read_json(run_file)["outputs"]) if run_file.is_file() else task.outputs
    if outputs != task.outputs:
        raise ValueError(f"{directory} has a head for {_shown(outputs)}; the data have {_shown(task.outputs)}")
    head, changed = _head(task), _changed_by_full(task) if config.adapter.method == "full" else {}
    stored = _read(directory / HEAD_FILE, head) if head else {}
    delta = _read(directory / DELTA_FILE, changed) if changed else {}
    if config.is_adapted:
        load = load_tuner if config.adapter.method == PEFT else load_adapter
        load(task.model, directory)
    for name, value in changed.items():
        value.add_(delta[name].to(value.device))
    for name, value in head.items():
        value.copy_(stored[name])


def _head(task: Task) -> dict[str, Tensor]:
    """What the task's module has beside the model's own parameters and buffers, such as a classifier."""
    modules = task.module.named_modules(remove_duplicate=False)
    inside = tuple(f"{name}." if name else "" for name, module in modules if module is task.model)
    own = {value.data_ptr() for value in task.model.state_dict().values()}
    values = {name: value for name, value in task.module.state_dict().items() if not name.startswith(inside)}
    return {name: value for name, value in values.items() if value.data_ptr() not in own}


def _changed_by_full(task: Task) -> dict[str, Tensor]:
    """The parameters that full fine-tuning trains."""
    return {name: value for name, value in task.model.named_parameters() if name not in task.frozen}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_file(path) as part:
        part.write_bytes(
            serialize_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        )


def _read(path: Path, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which must be those that are present in the task, name by name and shape by shape."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; accepted: a folder that a run with save.adapter=true has written")
    with naming(path):
        try:
            stored = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"it is damaged or not a safetensors file ({error})") from None
        check_same_tensors(stored, present)
    return stored


def _shown(outputs: tuple[str, ...]) -> str:
    return ", ".join(outputs[:5]) + (f" and {len(outputs) - 5} more" if len(outputs) > 5 else "") or "nothing"
