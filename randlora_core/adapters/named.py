"""Several named adapters on one model: add, choose, mix within a batch, delete.

All adapters share the frozen weights. They share frozen random matrices, too, wherever an adapter's would be part of
those that are there: same seed, distribution and factors, and at most their sizes (so inject the adapter with the
largest layers first). Where that is not so, an adapter gets matrices of its own: what an adapter computes never depends
on the others.

One adapter is active: it acts, merges and trains, and `adapter_parameters`, `count_parameters` and `save_adapter` are
about it. The model's own parameters that `inject_adapter(..., trainable=...)` named are shared by all adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.inject import apply_injection, forget_adapter, plan_addition
from randlora_core.adapters.state import (
    active_name,
    adapter_states,
    all_adapter_layers,
    require_adapter,
    require_unmerged,
)


def add_adapter(
    model: nn.Module, config: AdapterConfig, name: str, targets: Sequence[str] | str | None = None
) -> nn.Module:
    """Put another adapter on a model, in place; it does nothing until `set_adapter` or `use_adapters` names it.

    Args:
        model: A model with adapters, not merged.
        config: Settings of a method, which may differ from those of the other adapters.
        name: Name of the adapter, without dots; `inject_adapter` made the one called "default".
        targets: As in `inject_adapter`; None stands for the layers of the first adapter.

    Returns:
        `model`.

    Raises:
        ValueError: As in `inject_adapter`; if the model has no adapter, is merged, or has an adapter of this name; or
            if the name has a dot or is empty. The model is unchanged then.
    """
    check_new_name(model, name)
    return apply_injection(model, plan_addition(model, config, targets), adapter=name)


def check_new_name(model: nn.Module, name: str) -> None:
    """Refuse a name that a further adapter cannot have.

    Raises:
        ValueError: If the model has no adapter, is merged, or has an adapter of this name; or if the name has a dot or
            is empty.
    """
    names = tuple(adapter_states(model))
    require_unmerged(model)
    if name in names:
        raise ValueError(f"there is an adapter {name!r} already; adapters: {', '.join(names)}")
    check_name(name)


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a module.

    Raises:
        ValueError: If `name` is not a non-empty string without dots.
    """
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"an adapter's name must be a non-empty string without dots, got {name!r}")


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of a model's adapters, in the order in which they came.

    Raises:
        ValueError: If the model has no adapter.
    """
    return tuple(adapter_states(model))


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Make an adapter the active one: it acts, and its parameters require gradients, those of the others do not.

    Layers that are no targets of it answer as their base layers.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, none of this name, or is merged.
    """
    require_adapter(model, name)
    require_unmerged(model)
    for layer in all_adapter_layers(model).values():
        layer.active = name
        for other, update in layer.updates.items():
            trains = update.num_parameters(update.config, (layer.out_features, layer.in_features)) > 0
            update.requires_grad_(trains and other == name)
    return model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Take an adapter off that is not active, with the matrices that only it used; other adapters stay as they are.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, none of this name, or it is the active one.
    """
    require_adapter(model, name)
    if active_name(model) == name:
        raise ValueError(f"{name!r} is the active adapter; call set_adapter or unload_adapter first")
    for layer in all_adapter_layers(model).values():
        layer.updates.pop(name) if name in layer.updates else None
    forget_adapter(model, name)
    return model


@contextmanager
def use_adapters(
    model: nn.Module, adapter_names: Sequence[str | None], *, batch_axis: int | None = None
) -> Iterator[nn.Module]:
    """Within the context, every row of the batch goes through its own adapter, or through the base model.

    The rows of one adapter are computed together. Gradients reach the active adapter only. Contexts may be nested: the
    innermost counts. A compiled model is compiled again for every new sequence of names.

    Args:
        model: A model with adapters, not merged.
        adapter_names: One name per row of the batch; None stands for the base model.
        batch_axis: Axis of the rows in the inputs of adapted layers; None stands for 0, unless an
            nn.MultiheadAttention with batch_first=False shows that the model puts the sequence first. Layers inside of
            an nn.MultiheadAttention follow its batch_first.

    Raises:
        ValueError: If the model has no adapter, none of a given name, or is merged; if `batch_axis` is needed. In the
            forward pass: if a layer's input has another number of rows.
    """
    rows = tuple(adapter_names)
    for name in {row for row in rows if row is not None}:
        require_adapter(model, name)
    require_unmerged(model)
    layers = all_adapter_layers(model)
    axes = {name: _row_axis(model, name, batch_axis) for name in layers}
    before = {name: (layer.rows, layer.row_axis) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.rows, layer.row_axis = rows, axes[name]
    try:
        yield model
    finally:
        for name, layer in layers.items():
            layer.rows, layer.row_axis = before[name]


def _row_axis(model: nn.Module, name: str, batch_axis: int | None) -> int:
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return 0 if parent.batch_first else 1
    if batch_axis is None and any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in model.modules()):
        raise ValueError(
            f"the model has attention with batch_first=False, so that the rows of the batch may be on axis 1 in the "
            f"input of layer {name!r}: give batch_axis"
        )
    return batch_axis or 0
