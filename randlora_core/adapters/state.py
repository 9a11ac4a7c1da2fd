"""The record of a model's adapters that is kept on the model, and the layers and parameters that belong to them.

The model keeps its class. What was injected is an attribute of the model, a tuple of plain values for each adapter
(`AdapterState`), so that it survives deepcopy and pickling.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from randlora_core.adapters.bases import SharedBases
from randlora_core.adapters.config import AdapterConfig, check_choice
from randlora_core.adapters.layer import AdapterLayer
from randlora_core.adapters.layer_kinds import LayerKind, Shape, kind_of

_STATE = "_randlora_state"


@dataclass(frozen=True)
class AdapterState:
    """Describes one adapter that was injected into a model.

    Args:
        config: Settings, with those that depend on the targets resolved.
        shapes: Full name of every adapted layer -> (out, in), in the model's order.
        trainable: Full names of the model's own parameters that train beside the adapter, in the plain model's names,
            and of the buffers that change with them (running statistics).
        split_in_proj: Whether attention modules have separate q, k and v targets.
        unfrozen: Names of all parameters that required gradients before the injection.
    """

    config: AdapterConfig
    shapes: dict[str, Shape]
    trainable: tuple[str, ...]
    split_in_proj: bool
    unfrozen: tuple[str, ...]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Args:
        trainable: Parameters that require gradients: adapters and what `trainable` named.
        total: All parameters of the model, adapters included; frozen random bases are no parameters. A quantised weight
            counts as out x in, however its codes are packed.
        per_layer: Adapted layer's name -> parameters of its adapter.
    """

    trainable: int
    total: int
    per_layer: dict[str, int]


def set_adapter_states(model: nn.Module, states: Mapping[str, AdapterState]) -> None:
    """Replaces the states of all adapters; without states, nothing is left on the model."""
    if states:
        setattr(model, _STATE, dict(states))
    elif hasattr(model, _STATE):
        delattr(model, _STATE)


def has_adapters(model: nn.Module) -> bool:
    """Whether anything was injected into `model`."""
    return hasattr(model, _STATE)


def require_plain(model: nn.Module) -> None:
    """Refuse a model with adapters.

    Raises:
        ValueError: If `model` has any.
    """
    if all_adapter_layers(model) or hasattr(model, _STATE):
        raise ValueError("the model has adapters already; call unload_adapter first")


def adapter_states(model: nn.Module) -> dict[str, AdapterState]:
    """Gives the state of every adapter by name, in the order of injection.

    Raises:
        ValueError: If the model has no adapter.
    """
    states = getattr(model, _STATE, None)
    if states is None:
        raise ValueError(f"the {type(model).__name__} has no adapter; call inject_adapter first")
    return states


def adapter_state(model: nn.Module, adapter: str | None = None) -> AdapterState:
    """Gives the state of the adapter called `adapter`; None stands for the active adapter.

    Raises:
        ValueError: If the model has no adapter, or none of this name.
    """
    states = adapter_states(model)
    return states[require_adapter(model, active_name(model) if adapter is None else adapter)]


def require_adapter(model: nn.Module, adapter: str) -> str:
    """Gives `adapter` back, where the model has an adapter of this name.

    Raises:
        ValueError: Where it has none.
    """
    check_choice("adapter", adapter, adapter_states(model))
    return adapter


def require_unmerged(model: nn.Module) -> None:
    """Refuse a merged model.

    Raises:
        ValueError: If the active adapter is merged.
    """
    if any(layer.merged for layer in all_adapter_layers(model).values()):
        raise ValueError("the adapter is merged; call unmerge_adapter first")


def require_no_context(layers: Iterable[AdapterLayer]) -> None:
    """Refuse to change weights where a context is going to change them back.

    Raises:
        ValueError: Inside of `disable_adapter` or `use_adapters`.
    """
    if any(layer.disabled or layer.rows is not None for layer in layers):
        raise ValueError("leave disable_adapter and use_adapters first: they set back what they changed")


def active_name(model: nn.Module) -> str:
    """Name of the adapter that acts, merges and trains.

    Raises:
        ValueError: If the model has no adapter.
    """
    adapter_states(model)
    return next(iter(all_adapter_layers(model).values())).active


def all_adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The layers that hold any adapter by name, each once, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The layers that hold the active adapter by name, each once, in the model's order."""
    return {name: layer for name, layer in all_adapter_layers(model).items() if layer.active in layer.updates}


def require_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """As `adapter_layers`, of a model that has some.

    Raises:
        ValueError: If the model has no adapter.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ValueError(f"the {type(model).__name__} has no adapter; call inject_adapter first")
    return layers


def adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The active adapter's parameters, without the model's own that `trainable` named."""
    return (parameter for layer in require_layers(model).values() for parameter in layer.update.parameters())


def adapter_bases(model: nn.Module, adapter: str | None = None) -> dict[int, SharedBases]:
    """The frozen random matrices of an adapter (None: the active one) by rank; empty for methods without."""
    adapter = active_name(model) if adapter is None else require_adapter(model, adapter)
    layers = all_adapter_layers(model).values()
    updates = [layer.updates[adapter] for layer in layers if adapter in layer.updates]
    return {update.config.rank: update.bases for update in updates if hasattr(update, "bases")}


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Counts of a model with or without adapters; shared parameters count once. `per_layer` is the active adapter's."""
    parameters, packed = list(model.parameters()), quantised_layers(model)
    return ParameterCounts(
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters)
        + sum(math.prod(kind.shape(layer)) - layer.weight.numel() for layer, kind in packed.items()),
        per_layer={
            name: sum(p.numel() for p in layer.update.parameters()) for name, layer in adapter_layers(model).items()
        },
    )


def quantised_layers(model: nn.Module) -> dict[nn.Module, LayerKind]:
    """The layers of a model whose weights bitsandbytes holds as codes, with their kinds."""
    kinds = ((module, kind_of(module)) for module in model.modules())
    return {module: kind for module, kind in kinds if kind is not None and kind.quantised}


def model_tensors(model: nn.Module) -> list[Tensor]:
    """All that a model keeps in memory: parameters and buffers as they are stored, and the scales of quantised ones."""
    scales = (kind.tensors(layer).values() for layer, kind in quantised_layers(model).items())
    return [*model.parameters(), *model.buffers(), *itertools.chain.from_iterable(scales)]


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
