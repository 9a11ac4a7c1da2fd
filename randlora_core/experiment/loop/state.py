"""The resumable state of a training run: one safetensors file, replaced atomically; nothing is unpickled.

Tensors sharded over processes are written whole, so that the file does not depend on the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from randlora_core.files import atomic_file

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        key: Identity of the run; a state of another run is not resumed.
        step: Optimizer steps done.
        seconds: Training time so far.
        waited_seconds: The part of it spent waiting for data.
        validation: (step, score) pairs so far.
        best_step: Step of the best score so far, where its weights are kept; else None.
    """

    key: str
    step: int
    seconds: float
    waited_seconds: float
    validation: tuple[tuple[int, float], ...]
    best_step: int | None


@dataclass(frozen=True)
class Resume:
    """Where the resumable state lies, whose it is, and how many seconds may pass before it is written again.

    A subclass may keep several states, and decide by the step when one is written.
    """

    path: Path
    key: str
    seconds: float

    def latest(self) -> Path:
        """The state to go on from; there need be none."""
        return self.path

    def place(self, step: int) -> Path:
        """Where the state after a step goes."""
        return self.path

    def is_due(self, seconds: float) -> bool:
        """Whether it is time to write a state; asked in every process.

        Args:
            seconds: Since the last state was written; after the last step, all of the training's.
        """
        return seconds >= self.seconds

    def is_due_at(self, step: int) -> bool:
        """Whether the state after a step is written whatever the time; the same in every process."""
        return False

    def on_kept(self, step: int) -> None:
        """Called by the first process after the state of a step has been written."""


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Tensor,
    best: Mapping[str, Tensor],
    progress: Progress,
    *,
    write: bool = True,
) -> None:
    """Writes the state of a run.

    Args:
        path: Where to.
        model: Its trained parameters and persistent buffers are written.
        optimizer: Its state is written.
        losses: Loss of each step, (steps,).
        best: The best weights so far, as `copy_trained` gives them; empty where none are kept.
        progress: How far the run has come.
        write: False in all processes but one, which only take part in gathering what is sharded.

    Raises:
        OSError: The file cannot be written; an earlier state is kept.
    """
    groups = {
        "model": copy_trained(model),
        "best": best,
        "optimizer": {name: _copy(tensor) for name, tensor in _optimizer_tensors(optimizer).items()},
    }
    if not write:
        return
    tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    tensors["losses"] = _copy(losses)
    with atomic_file(path) as part:
        try:
            save_file(tensors, part, metadata={"progress": json.dumps(asdict(progress))})
        except SafetensorError as error:
            raise OSError(f"{path}: the state cannot be written: {error}") from error


def read_progress(path: Path) -> Progress:
    """How far the run has come whose state is in a file; its tensors are not read.

    Raises:
        ValueError: The file is cut off or holds something else than a state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["progress"])
        values["validation"] = tuple((step, score) for step, score in values["validation"])
        return Progress(**values)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a resumable state: {error}") from error


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Tensor, key: str
) -> tuple[Progress, Tensors] | None:
    """Restores model, optimizer and losses in place to what `save_state` wrote.

    Returns:
        The progress and the best trained tensors, which are none where none were kept; None where there is no state
        of the run `key`.

    Raises:
        ValueError: The file is damaged or holds other tensors than the model has; nothing was changed.
    """
    if not path.exists():
        return None
    try:
        progress = read_progress(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it to start afresh") from error
    if progress.key != key:
        return None
    stored = load_file(path)
    groups: dict[str, Tensors] = {"losses": {}, "model": {}, "best": {}, "optimizer": {}}
    for name, tensor in stored.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = tensor
    trained = _trained_tensors(model)
    frozen = dict(model.named_parameters(remove_duplicate=False)).keys() - trained.keys()
    for group in ("model", "best"):  # a state of earlier code may hold a frozen tensor that is tied to another
        groups[group] = {name: tensor for name, tensor in groups[group].items() if name not in frozen}
    fits = _fit(groups["losses"], {"": losses}) and _fit(groups["model"], trained)
    if not fits or (groups["best"] and not _fit(groups["best"], trained)):
        raise ValueError(f"{path}: the state of another model or number of steps; delete it to start afresh")
    restore_trained(model, groups["model"])
    losses.copy_(groups["losses"][""])
    _restore_optimizer(optimizer, groups["optimizer"])
    return progress, groups["best"]


def copy_trained(model: nn.Module) -> Tensors:
    """Copies on the CPU of all that training can change: trained parameters and persistent buffers, by name."""
    return {name: _copy(tensor) for name, tensor in _trained_tensors(model).items()}


def restore_trained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts what `copy_trained` gave back into the model, in place."""
    with torch.no_grad():
        for name, target in _trained_tensors(model).items():
            target.copy_(_sharded_like(target, tensors[name]))


def _trained_tensors(model: nn.Module) -> Tensors:
    parameters = model.named_parameters(remove_duplicate=False)
    kept = {name for name, parameter in parameters if parameter.requires_grad}
    kept |= {name for name, _ in model.named_buffers(remove_duplicate=False)}  # not the scales of quantised layers
    return {name: tensor for name, tensor in model.state_dict().items() if name in kept}


def _fit(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> bool:
    same_names = tensors.keys() == targets.keys()
    return same_names and all(tensors[name].shape == target.shape for name, target in targets.items())


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{entry}": torch.as_tensor(value)
        for index, entries in state.items()
        for entry, value in entries.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        index, entry = name.split("/")
        state.setdefault(int(index), {})[entry] = _sharded_like(parameters[int(index)], tensor)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or gathered from all processes where it is sharded; all of them have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _copy(tensor: Tensor) -> Tensor:
    return whole(tensor).detach().to("cpu", copy=True).contiguous()


def _sharded_like(target: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, sharded as `target` is where that is sharded and has its shape (a step counter has not)."""
    if isinstance(target, DTensor) and tensor.shape == target.shape:
        return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)
    return tensor
