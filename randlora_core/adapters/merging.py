"""Merging the active adapter into the frozen weights, undoing that, and switching adapters off for a while."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from randlora_core.adapters.state import adapter_states, all_adapter_layers, require_layers, require_no_context


def merge_adapter(model: nn.Module) -> nn.Module:
    """Add the active adapter to the frozen weights, in place: the forward pass then costs what the base model's does.

    A quantised weight is decoded, added to and quantised again, which costs precision: there is a warning that gives
    the largest `merge_error`.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, is merged already, is inside of `disable_adapter` or `use_adapters`, or
            a weight cannot be written or would not be finite; the model is unchanged then.
    """
    layers = require_layers(model)
    if any(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is merged already")
    require_no_context(layers.values())
    done = []
    for name, layer in layers.items():
        try:
            layer.merge()
        except ValueError as error:
            for merged in done:
                merged.unmerge()
            raise ValueError(f"cannot merge layer {name!r}: {error}") from None
        done.append(layer)
    errors = {name: layer.merge_error for name, layer in layers.items() if layer.kind.quantised}
    if errors:
        worst = max(errors, key=errors.get)
        warnings.warn(
            f"{len(errors)} merged weights were quantised again; the largest error is {errors[worst]:.3g} times the "
            f"update's norm, in layer {worst!r}; merge_error(model) has all",
            stacklevel=2,
        )
    return model


def merge_error(model: nn.Module) -> dict[str, float]:
    """Measures what rounding or quantising the merged weights took from the update.

    Returns:
        Layer's name -> ||stored - (W0 + dW)|| / ||dW||, Frobenius norms: 0 is exact, and at 1 the error is as large as
        the update.

    Raises:
        ValueError: If the model has no adapter or is not merged.
    """
    layers = require_layers(model)
    if not all(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is not merged")
    return {name: layer.merge_error for name, layer in layers.items()}


def unmerge_adapter(model: nn.Module) -> nn.Module:
    """Undo `merge_adapter`: the frozen weights are what they were, to the bit.

    Returns:
        `model`.

    Raises:
        ValueError: If the model has no adapter, is not merged, or is inside of `disable_adapter`.
    """
    layers = require_layers(model)
    if not all(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is not merged")
    require_no_context(layers.values())
    for layer in layers.values():
        layer.unmerge()
    return model


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context the model answers as the base model, merged or not. Contexts may be nested.

    Parameters that `trainable` named keep their trained values.

    Raises:
        ValueError: If the model has no adapter.
    """
    adapter_states(model)
    layers = [layer for layer in all_adapter_layers(model).values() if not layer.disabled]
    for layer in layers:
        layer.disabled = True
        if layer.merged:
            layer.exchange_weights()
    try:
        yield model
    finally:
        for layer in layers:
            layer.disabled = False
            if layer.merged:
                layer.exchange_weights()
