"""Accelerate as the loop uses it, and models that it must not move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Shares:
    """How the micro-batches of a step are divided between the processes.

    Attributes:
        micro_batches: The micro-batches of a step that this process takes part in.
        are_split: Whether a process takes a part of every micro-batch instead of some micro-batches whole.
    """

    micro_batches: range
    are_split: bool


def make_accelerator(device: torch.device, accumulate: int, batches: Dataset) -> tuple[Accelerator, Shares]:
    """The Accelerator of a run of which every step has `accumulate` micro-batches over all processes, and their shares.

    Raises:
        ValueError: The micro-batches can be neither dealt out evenly nor split, or Accelerate, which takes one kind of
            device in the life of a process, does not use this one.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

    state = PartialState(cpu=device.type == "cpu")
    processes = state.num_processes
    shares = Shares(range(state.process_index, accumulate, processes), are_split=False)
    if accumulate % processes:
        if not hasattr(batches, "shard"):
            raise ValueError(
                f"accumulate={accumulate} micro-batches per step cannot be dealt out to {processes} processes; "
                f"accepted: multiples of {processes}"
            )
        shares = Shares(range(accumulate), are_split=True)
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=device.type == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(len(shares.micro_batches), sync_with_dataloader=False),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )
    if accelerator.device.type != device.type:
        raise ValueError(f"device {device} cannot be used: Accelerate runs on {accelerator.device} in this process")
    return accelerator, shares


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, one process after the other; gradients go back to the process that a row came from.

    Args:
        rows: (N, ...), N the same in every process.

    Returns:
        (processes * N, ...).
    """
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))


@contextlib.contextmanager
def evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts a module on the device, unless it is placed already, and into evaluation mode while the body runs."""
    was_training = module.training
    if not is_placed(module):
        module.to(device)
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def is_placed(module: nn.Module) -> bool:
    """Whether a model lies where it should: spread by a device_map, loaded quantised, sharded, or on an accelerator."""
    marks = ("hf_device_map", "is_loaded_in_8bit", "is_loaded_in_4bit")
    return (
        any(getattr(part, mark, None) for part in module.modules() for mark in marks)
        or any(parameter.device.type not in ("cpu", "meta") for parameter in module.parameters())
        or is_sharded(module)
    )


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has spread the parameters over the processes.

    Raises:
        ValueError: It has spread some, but not all that are trained, so that nothing would average their gradients.
    """
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        return False
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            raise ValueError(f"the trained parameter {name} is not sharded but others are; use fully_shard on all")
    return True
