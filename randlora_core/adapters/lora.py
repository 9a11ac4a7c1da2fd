"""LoRA, and rsLoRA by its scale.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685.
rsLoRA: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
https://arxiv.org/abs/2312.03732.

    dW = s B A        s = alpha / r, or alpha / sqrt(r) with rank_stabilized

    A   (r, in)    trained, kaiming uniform with a = sqrt 5: U(-1/sqrt(in), 1/sqrt(in))
    B   (out, r)   trained, 0
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.adapters.config import AdapterConfig, ScaledConfig
from randlora_core.adapters.layer import Method, Shape, Update


@dataclass(frozen=True)
class LoRAConfig(ScaledConfig):
    """Settings of LoRA; alpha defaults to 2 rank.

    Args:
        rank: As in `AdapterConfig`.
        rank_stabilized: Divide alpha by sqrt(rank) instead of rank (rsLoRA).
    """

    method = "lora"

    _: KW_ONLY
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """The factor alpha / rank, or alpha / sqrt(rank)."""
        return self.alpha_or_default / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoRAUpdate(Update):
    """LoRA on one layer: `lora_A` (r, in), `lora_B` (out, r). A is drawn from torch's global generator."""

    def __init__(self, config: ScaledConfig, shape: Shape, bases: None, weight: Tensor) -> None:
        super().__init__(config, shape)
        self.lora_A = nn.Parameter(torch.empty(config.rank, self.in_features, **self.parameters_like(weight)))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, config.rank, **self.parameters_like(weight)))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @staticmethod
    def num_parameters(config: AdapterConfig, shape: Shape) -> int:
        """R (in + out)."""
        return config.rank * sum(shape)

    def delta_weight(self) -> Tensor:
        """S B A, (out, in)."""
        dtype = torch.promote_types(self.lora_A.dtype, torch.float32)
        return (self.config.scale * self.lora_B.to(dtype)) @ self.lora_A.to(dtype)

    def added_output(self, x: Tensor) -> Tensor:
        """S (x A^T) B^T."""
        return F.linear(F.linear(self.input_like_parameters(x), self.lora_A), self.lora_B) * self.config.scale


METHOD = Method(LoRAConfig, LoRAUpdate)
