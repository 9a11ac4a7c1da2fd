"""Makes `layer.weight` of an adapted layer the adapted weight, for models that multiply by it themselves.

Some modules compute `F.linear(x, self.qkv.weight, bias)` instead of calling the layer: torchvision's Swin, and timm's
BEiT, EVA and Swin V2. With the frozen weight, an adapter would change none of their outputs and get no gradient,
without any error. So an adapted layer's `weight` is an `AdaptedWeight`: a product with it goes through the layer, and
any other computation gets the frozen weight plus the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

_METADATA = frozenset(
    {Tensor.dtype.__get__, Tensor.device.__get__, Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.size, Tensor.dim}
)


class AdaptedLayer(Protocol):
    """The part of an `AdapterLayer` that this module needs.

    Attributes:
        base: The frozen layer.
        bias: Bias of the frozen layer.
        stores_transposed: Whether the frozen layer keeps its weight as (in, out).
    """

    base: nn.Module
    bias: Tensor | None
    stores_transposed: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Output (..., out) for x (..., in)."""

    def applied_weight(self) -> Tensor:
        """The frozen weight plus the update, in the frozen layer's layout."""


class AdaptedWeight(Tensor):
    """The weight that an adapted layer applies, in the layout of the stored weight; formed only where it is needed.

    Attributes:
        layer: The adapted layer.
    """

    layer: AdaptedLayer

    @classmethod
    def of(cls, layer: AdaptedLayer) -> Tensor:
        """The weight of `layer`, whose base layer is floating-point."""
        if torch.compiler.is_compiling():  # what is not used of it, the compiler leaves out
            return layer.applied_weight()
        weight = layer.base.weight.detach().as_subclass(cls)
        weight.layer = layer
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: tuple[type, ...], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func not in _METADATA:
            args, kwargs = tree_map_only(AdaptedWeight, lambda weight: weight.layer.applied_weight(), (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by the layer, so that dropout and the adapters of rows count as they do there."""
    if not isinstance(weight, AdaptedWeight) or weight.layer.stores_transposed:
        return F.linear(
            *(x.layer.applied_weight() if isinstance(x, AdaptedWeight) else x for x in (input, weight, bias))
        )
    layer = weight.layer
    result = layer(input)
    if bias is layer.bias:
        return result
    if layer.bias is not None:
        result = result - layer.bias.to(result.dtype)
    return result if bias is None else result + bias.to(result.dtype)
