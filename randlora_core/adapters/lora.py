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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.adapters.config import AdapterConfig, ScaledConfig, is_number
from randlora_core.adapters.layer import Method, Update
from randlora_core.adapters.layer_kinds import Shape


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
        """That is r (in + out)."""
        return config.rank * sum(shape)

    def delta_weight(self) -> Tensor:
        """The product s B A, (out, in)."""
        dtype = torch.promote_types(self.lora_A.dtype, torch.float32)
        return (self.config.scale * self.lora_B.to(dtype)) @ self.lora_A.to(dtype)

    def added_output(self, x: Tensor) -> Tensor:
        """The product s (x A^T) B^T."""
        return F.linear(F.linear(self.input_like_parameters(x), self.lora_A) * self.config.scale, self.lora_B)


def lora_plus_groups(model: nn.Module, lr: float, ratio: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser in which LoRA's B learns faster than A (LoRA+).

    Source: Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", ICML 2024,
    https://arxiv.org/abs/2402.12354; the authors suggest a ratio of 16.

    Args:
        model: A model with LoRA or DoRA adapters.
        lr: Learning rate of everything that trains except B, above 0.
        ratio: Learning rate of B over `lr`, above 0.

    Returns:
        Two groups, each with "params" and "lr": all other parameters that require gradients, and every B.

    Raises:
        ValueError: If no parameter is LoRA's B, or a number is outside its range.
    """
    for name, value in (("lr", lr), ("ratio", ratio)):
        if not (is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    fast = [parameter for name, parameter in trained.items() if name.endswith(".lora_B")]
    if not fast:
        raise ValueError(f"the {type(model).__name__} has no parameter lora_B to train at another rate")
    slow = [parameter for name, parameter in trained.items() if not name.endswith(".lora_B")]
    return [{"params": slow, "lr": lr}, {"params": fast, "lr": lr * ratio}]


METHOD = Method(LoRAConfig, LoRAUpdate)
