"""Accelerate as the loop uses it, and models that it must not move."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from randlora_core.adapters.state import quantised_layers

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
    """Puts a module on the device, unless it is placed already, and into evaluation mode while the body runs.

    Of a sharded module the parameters outside of all blocks, such as embeddings, are gathered for that time, since an
    evaluation may call parts of the module; blocks gather theirs when they are called.
    """
    was_training = module.training
    if not is_placed(module):
        module.to(device)
    module.eval()
    outside = module if isinstance(module, FSDPModule) else None
    if outside is not None:
        outside.unshard()
    try:
        yield
    finally:
        if outside is not None:
            outside.reshard()
        module.train(was_training)


def is_placed(module: nn.Module) -> bool:
    """Whether a model lies where it should: spread by a device_map, loaded quantised, sharded, or on an accelerator."""
    marks = ("hf_device_map", "is_loaded_in_8bit", "is_loaded_in_4bit")
    return (
        any(getattr(part, mark, None) for part in module.modules() for mark in marks)
        or any(parameter.device.type not in ("cpu", "meta") for parameter in module.parameters())
        or is_sharded(module)
    )


def shard(module: nn.Module, device: torch.device) -> None:
    """Spreads a module's parameters over all processes by torch's fully_shard (FSDP2), if `accelerate launch` says so.

    The modules of the classes that accelerate's file names (a transformer's blocks) are gathered one at a time while
    they compute; what is outside of them is gathered during the whole forward and backward pass. It is done here and
    not by `Accelerator.prepare`, so that processes of CPUs and of GPUs do the same.

    Args:
        module: On the CPU, the same in every process; sharded in place.
        device: Where each process holds its part.

    Raises:
        ValueError: The file asks for what is not supported, or names a class that the module does not have; or the
            module is quantised.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()  # of the settings that `accelerate launch` left in the environment
    for name, found, accepted in (
        ("version", plugin.fsdp_version, 2),
        ("activation_checkpointing", plugin.activation_checkpointing, False),
        ("cpu_ram_efficient_loading", plugin.cpu_ram_efficient_loading, False),
        ("reshard_after_forward", plugin.reshard_after_forward, True),  # else blocks stay gathered after an evaluation
        ("offload_params", isinstance(plugin.cpu_offload, CPUOffloadPolicy), False),
    ):
        if found != accepted:
            raise ValueError(f"accelerate's fsdp_{name}={found}; accepted: {accepted}")
    names = plugin.transformer_cls_names_to_wrap or []
    blocks = [part for part in module.modules() if type(part).__name__ in names]
    if not blocks or {type(block).__name__ for block in blocks} != set(names):
        there = ", ".join(sorted({type(part).__name__ for part in module.modules() if list(part.children())}))
        raise ValueError(f"accelerate's fsdp_transformer_layer_cls_to_wrap={','.join(names)}; accepted: among {there}")
    if quantised_layers(module):
        raise ValueError("a quantised base cannot be spread over processes; accepted: without FSDP, or not quantised")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gives a sharded module its trained parameters whole, on the CPU, while the body runs; all processes call this."""
    sharded = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if isinstance(parameter, DTensor) and parameter.requires_grad
    ]
    distinct = dict.fromkeys(parameter for _, _, parameter in sharded)  # tied ones stand in several places
    whole = {parameter: nn.Parameter(parameter.full_tensor().detach().cpu()) for parameter in distinct}
    for part, name, parameter in sharded:
        part.register_parameter(name, whole[parameter])
    try:
        yield
    finally:
        for part, name, parameter in sharded:
            part.register_parameter(name, parameter)


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
