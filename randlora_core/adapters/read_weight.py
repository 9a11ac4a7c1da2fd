"""What a model gets that reads the weight of an adapted layer instead of calling the layer.

Some modules compute `F.linear(x, self.qkv.weight, bias)` themselves: torchvision's Swin, and timm's BEiT, EVA and Swin
V2. With the frozen weight, an adapter would act on none of their outputs and get no gradient, without a word. So an
adapted layer's `weight` is an `AdaptedWeight`: a product with it goes through the layer, and any other computation
takes frozen weight plus update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from randlora_core.adapters.layer import AdapterLayer

_METADATA = frozenset(
    {Tensor.dtype.__get__, Tensor.device.__get__, Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.size, Tensor.dim}
)


class AdaptedWeight(Tensor):
    """The weight that an adapted layer applies, as a tensor of the stored weight's layout; formed only where needed.

    Attributes:
        layer: The adapted layer.
    """

    layer: AdapterLayer

    @classmethod
    def of(cls, layer: AdapterLayer) -> Tensor:
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
