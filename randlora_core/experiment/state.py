"""The resumable state of a training run: one safetensors file, replaced atomically; nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from randlora_core.files import atomic_file


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        key: Identity of the run; a state of another run is not resumed.
        step: Optimiser steps done.
        seconds: Training time so far.
        validation: (step, accuracy) pairs so far.
    """

    key: str
    step: int
    seconds: float
    validation: tuple[tuple[int, float], ...]


def save_state(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, losses: Tensor, progress: Progress
) -> None:
    """Writes trained parameters, buffers, optimiser state, losses (steps,) and progress.

    Raises:
        OSError: The file cannot be written; an earlier state is kept.
    """
    tensors = {"losses": losses, **_model_tensors(model), **_optimiser_tensors(optimiser)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_file(path) as part:
        try:
            save_file(tensors, part, metadata={"progress": json.dumps(asdict(progress))})
        except SafetensorError as error:
            raise OSError(f"{path}: the state cannot be written: {error}") from error


def load_state(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, losses: Tensor, key: str
) -> Progress | None:
    """Restores in place what `save_state` wrote.

    Returns:
        The progress, or None where there is no state of the run `key`.

    Raises:
        ValueError: The file is damaged or holds other tensors than the model and the optimiser have.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a resumable state: {error}; delete it to start afresh") from error
    if values["key"] != key:
        return None
    _restore(tensors, path, model, optimiser, losses)
    validation = tuple((step, accuracy) for step, accuracy in values["validation"])
    return Progress(key, values["step"], values["seconds"], validation)


def _restore(
    tensors: Mapping[str, Tensor], path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, losses: Tensor
) -> None:
    targets = {"losses": losses, **_model_tensors(model)}
    stored = {name for name in tensors if not name.startswith("optimiser/")}
    shapes_differ = any(tensors[name].shape != target.shape for name, target in targets.items() if name in tensors)
    if stored != set(targets) or shapes_differ:
        raise ValueError(f"{path}: the state of another model or number of steps; delete it to start afresh")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    state: dict[int, dict[str, Tensor]] = {}
    for name in tensors.keys() - stored:
        _, index, entry = name.split("/")
        state.setdefault(int(index), {})[entry] = tensors[name]
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and persistent buffers: all that training can change."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {f"model/{name}": tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser/{index}/{entry}": torch.as_tensor(value)
        for index, entries in state.items()
        for entry, value in entries.items()
    }
