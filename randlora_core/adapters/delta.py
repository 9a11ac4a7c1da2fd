"""Gives what a model's layers have learned as one full matrix per layer, and puts such matrices on a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from randlora_core.adapters.config import exactly
from randlora_core.adapters.dora import MagnitudeUpdate
from randlora_core.adapters.full_update import DeltaConfig
from randlora_core.adapters.inject import apply_injection, plan_injection
from randlora_core.adapters.layer import AdapterLayer
from randlora_core.adapters.layer_kinds import kind_of
from randlora_core.adapters.merging import disable_adapter
from randlora_core.adapters.state import adapter_layers
from randlora_core.adapters.targets import adaptable_layers
from randlora_core.errors import near


@torch.no_grad()
def delta_of(model: nn.Module, base: nn.Module | None = None) -> dict[str, Tensor]:
    """Computes the update of every layer: trained weight minus pretrained weight.

    Args:
        model: A model with an adapter, merged or not; or a fully fine-tuned one.
        base: The pretrained model of the same structure; required for a model without adapter, and not looked at for
            one with an adapter, which keeps its frozen weights.

    Returns:
        Layer's name -> (out, in), float32 (float64 for float64 weights), on the layer's device. Adapted layers, or else
        every layer that could hold an adapter, each once; an attention module has `in_proj` and `out_proj`. DoRA's
        magnitude is part of the difference. Parameters outside of these layers (norms, biases, embeddings) are not
        compared.

    Raises:
        ValueError: If a model without adapter comes without `base`, or their layers differ.
    """
    layers = adapter_layers(model)
    if layers:
        with disable_adapter(model):
            return {name: layer_delta(layer) for name, layer in layers.items()}
    if base is None:
        raise ValueError(f"the {type(model).__name__} has no adapter: its pretrained model is needed as `base`")
    weights, pretrained = _dense_weights(model), _dense_weights(base)
    shapes, expected = ({name: tuple(w.shape) for name, w in side.items()} for side in (weights, pretrained))
    if shapes != expected:
        name = next(iter(dict(shapes.items() ^ expected.items())))
        raise ValueError(
            f"the models differ in layer {name!r}: {shapes.get(name, 'absent')} in `model`, "
            f"{expected.get(name, 'absent')} in `base`"
        )
    return {name: _float(weights[name]) - _float(pretrained[name]).to(weights[name].device) for name in weights}


def inject_delta(model: nn.Module, deltas: Mapping[str, Tensor]) -> nn.Module:
    """Put frozen full updates on a pretrained model, in place: an adapter to merge, disable, save, load and take off.

    Args:
        model: A model without adapters.
        deltas: Layer's name -> (out, in), as `delta_of` returns them, or some of them.

    Returns:
        `model`, with no parameter that requires gradients.

    Raises:
        ValueError: If `deltas` is empty, or the model lacks a layer or has it in another shape; the model is as it was.
    """
    shapes = adaptable_layers(model)
    if not deltas:
        raise ValueError("deltas must hold at least one layer")
    for name, delta in deltas.items():
        if shapes.get(name) != tuple(delta.shape):
            found = f"has the shape {shapes[name]}" if name in shapes else f"is not in the model{near(name, shapes)}"
            raise ValueError(f"layer {name!r} of shape {tuple(delta.shape)} {found}")
    config = DeltaConfig(rank=max(min(delta.shape) for delta in deltas.values()))
    apply_injection(model, plan_injection(model, config, exactly(deltas)))
    with torch.no_grad():
        for name, layer in adapter_layers(model).items():
            layer.update.delta.copy_(deltas[name])
    return model


@torch.no_grad()
def layer_delta(layer: AdapterLayer) -> Tensor:
    """Computes the update of one adapted layer, (out, in), as `delta_of` gives it.

    The layer's weight must be the frozen one: the layer is not merged, or this is called within `disable_adapter`.
    """
    update = layer.update
    if isinstance(update, MagnitudeUpdate):
        weight = layer.dense_weight()
        merged = update.merged_weight(weight)
        return merged - weight.to(merged.dtype)
    return update.delta_weight()


def _dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """Maps the first name of every layer that could hold an adapter to its weight (out, in)."""
    weights, seen = {}, set()
    for name in adaptable_layers(model):
        parent_name, _, part = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        packed = isinstance(parent, nn.MultiheadAttention) and part == "in_proj"
        owner = parent.in_proj_weight if packed else model.get_submodule(name)
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        weights[name] = owner.detach() if packed else kind_of(owner).dense(owner)
    return weights


def _float(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
