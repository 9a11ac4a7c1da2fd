"""Accelerate as the loop uses it, and models that it must not move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(device: torch.device, accumulate: int) -> Accelerator:
    """The Accelerator of a run of which every step has `accumulate` micro-batches over all processes.

    Raises:
        ValueError: The micro-batches cannot be dealt out evenly, or Accelerate, which takes one kind of device in the
            life of a process, does not use this one.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

    processes = PartialState(cpu=device.type == "cpu").num_processes
    if accumulate % processes:
        raise ValueError(
            f"accumulate={accumulate} micro-batches per step cannot be dealt out to {processes} processes; "
            f"accepted: multiples of {processes}"
        )
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=device.type == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(accumulate // processes, sync_with_dataloader=False),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )
    if accelerator.device.type != device.type:
        raise ValueError(f"device {device} cannot be used: Accelerate runs on {accelerator.device} in this process")
    return accelerator


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
