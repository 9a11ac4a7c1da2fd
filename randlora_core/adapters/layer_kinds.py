"""The kinds of linear layers that can be adapted, and how the weight of each is read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from randlora_core.adapters import quantization

Shape = tuple[int, int]
"""(out_features, in_features) of a layer."""


@dataclass(frozen=True)
class LayerKind:
    """Reads and writes the weight of one kind of linear layer.

    Args:
        name: Name for error messages.
        matches: Whether a module is of this kind.
        shape: The module's (out, in); must work on the meta device.
        dense: The module's weight as a floating (out, in) tensor without gradient; a view where possible.
        write: Set the module's weight, in place, from an (out, in) tensor of the dtype that `dense` has.
        tensors: Name -> each tensor that makes up the stored weight; writing to all of them restores it to the bit.
        quantised: Whether `dense` has to decode the weight, and `write` to quantise it.
        refusal: Why a module of this kind cannot be adapted; None if it can.
        prepare: Called once on a module before it is adapted.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    shape: Callable[[nn.Module], Shape]
    dense: Callable[[nn.Module], Tensor]
    write: Callable[[nn.Module, Tensor], None]
    tensors: Callable[[nn.Module], dict[str, Tensor]] = lambda module: {"weight": module.weight.detach()}
    quantised: bool = False
    refusal: Callable[[nn.Module], str | None] = lambda module: None
    prepare: Callable[[nn.Module], None] = lambda module: None


def _is_linear(module: nn.Module) -> bool:
    if quantization.is_linear_4bit(module) or quantization.is_linear_8bit(module):  # subclasses of nn.Linear
        return False
    if not isinstance(module, nn.Linear):  # asked first: the weight of an adapted layer would be formed to be looked at
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point()


def _is_conv1d(module: nn.Module) -> bool:
    # Known by name: importing transformers to ask would cost every user of this package seconds.
    return any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__)


@torch.no_grad()
def _write_linear(module: nn.Module, weight: Tensor) -> None:
    module.weight.copy_(weight)


@torch.no_grad()
def _write_conv1d(module: nn.Module, weight: Tensor) -> None:
    module.weight.copy_(weight.T)


LINEAR = LayerKind(
    name="nn.Linear",
    matches=_is_linear,
    shape=lambda module: tuple(module.weight.shape),
    dense=lambda module: module.weight.detach(),
    write=_write_linear,
)
CONV1D = LayerKind(
    name="transformers' Conv1D",
    matches=_is_conv1d,
    shape=lambda module: tuple(module.weight.shape)[::-1],
    dense=lambda module: module.weight.detach().T,
    write=_write_conv1d,
)
LINEAR_4BIT = LayerKind(
    name="bitsandbytes' Linear4bit",
    matches=quantization.is_linear_4bit,
    shape=quantization.shape,
    dense=quantization.dense_4bit,
    write=quantization.write_4bit,
    tensors=quantization.tensors_4bit,
    quantised=True,
    refusal=quantization.refusal_4bit,
    prepare=quantization.prepare_4bit,
)
LINEAR_8BIT = LayerKind(
    name="bitsandbytes' Linear8bitLt",
    matches=quantization.is_linear_8bit,
    shape=quantization.shape,
    dense=quantization.dense_8bit,
    write=quantization.write_8bit,
    tensors=quantization.tensors_8bit,
    quantised=True,
    refusal=quantization.refusal_8bit,
)
LAYER_KINDS: tuple[LayerKind, ...] = (LINEAR, CONV1D, LINEAR_4BIT, LINEAR_8BIT)


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a layer that can be adapted, or None."""
    return next((kind for kind in LAYER_KINDS if kind.matches(module)), None)
