"""DoRA: a trained magnitude per output on top of LoRA.

Paper: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, https://arxiv.org/abs/2402.09353, equation
5.

    W = m * (W0 + dW) / ||W0 + dW||        norms over the input, one per output; dW = (alpha / r) B A

    W0  (out, in)   frozen              A   (r, in)   trained, kaiming uniform
    m   (out,)      trained, ||W0||     B   (out, r)  trained, 0

As in the paper's section 4.3 and in PEFT, the norm carries no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import ops
from randlora_core.adapters.config import AdapterConfig, ScaledConfig
from randlora_core.adapters.layer import AdapterLayer, Method, Update
from randlora_core.adapters.layer_kinds import Shape
from randlora_core.adapters.lora import LoRAUpdate


@dataclass(frozen=True)
class DoRAConfig(ScaledConfig):
    """Settings of DoRA; alpha defaults to 2 rank. Fields as in `ScaledConfig`."""

    method = "dora"


class MagnitudeUpdate(Update):
    """An update whose sum with the frozen weight gets a trained magnitude per output.

    A method inherits from this and from its own additive update, and calls `init_magnitude` at the end of its
    constructor.
    """

    def init_magnitude(self, weight: Tensor) -> None:
        """Create `lora_magnitude_vector` (out,) as the norms of the frozen weight (out, in)."""
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        self.lora_magnitude_vector = nn.Parameter(row_norms(weight))

    def merged_weight(self, weight: Tensor) -> Tensor:
        """As in `Update`."""
        merged = super().merged_weight(weight)
        return (self.lora_magnitude_vector / row_norms(merged.detach()))[:, None] * merged

    def forward(self, x: Tensor, layer: AdapterLayer) -> Tensor:
        """As in `Update`. Dropout acts on the rescaling of the frozen layer's output, too, as in PEFT."""
        result = layer.base(x)
        ratio = self.lora_magnitude_vector / self._norms(layer.dense_weight())
        if not self.training or self.config.dropout == 0.0:
            return ops.rescaled(result, self.added_output(x), layer.bias, ratio)
        x = self.dropout(x)
        base = F.linear(x, layer.dense_weight().to(x.dtype))
        added = (ratio - 1) * base + ratio * self.added_output(x)
        return result + added.to(result.dtype)

    def _norms(self, weight: Tensor) -> Tensor:
        """Computes ||W0 + dW|| per output, (out,), without gradient."""
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            delta = self.delta_weight()
            norms = row_norms(weight.to(delta.dtype) + delta)
        return norms


def row_norms(weight: Tensor) -> Tensor:
    """Computes the Euclidean norm of every row of (out, in): (out,). A row of zeros gets the smallest positive one."""
    return torch.linalg.vector_norm(weight, dim=1).clamp_min(torch.finfo(weight.dtype).tiny)


class DoRAUpdate(MagnitudeUpdate, LoRAUpdate):
    """DoRA on one layer: `lora_A` (r, in), `lora_B` (out, r), `lora_magnitude_vector` (out,)."""

    def __init__(self, config: DoRAConfig, shape: Shape, bases: None, weight: Tensor) -> None:
        super().__init__(config, shape, bases, weight)
        self.init_magnitude(weight)

    @torch.no_grad()
    def _norms(self, weight: Tensor) -> Tensor:
        """As in `MagnitudeUpdate`, without forming B A: ||W0||^2 + 2 s <W0 A^T, B> + s^2 <B A A^T, B>, by rows."""
        with torch.autocast(weight.device.type, enabled=False):
            dtype = torch.promote_types(self.lora_A.dtype, torch.float32)
            a, b, weight = self.lora_A.to(dtype), self.config.scale * self.lora_B.to(dtype), weight.to(dtype)
            frozen = row_norms(weight)
            added = ((2.0 * (weight @ a.T) + b @ (a @ a.T)) * b).sum(1)
            # Rows without an update keep the frozen norm to the bit.
            return torch.where(added == 0.0, frozen, (frozen.square() + added).clamp_min(0.0).sqrt()).clamp_min(
                torch.finfo(dtype).tiny
            )

    @staticmethod
    def num_parameters(config: AdapterConfig, shape: Shape) -> int:
        """LoRA's r (in + out), and out for the magnitude."""
        return LoRAUpdate.num_parameters(config, shape) + shape[0]


METHOD = Method(DoRAConfig, DoRAUpdate)
