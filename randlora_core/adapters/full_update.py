"""A frozen full update in the place of an adapter, so that full fine-tuning is analysed as the other methods are.

    dW (out, in)   the difference of two weights, frozen

Nothing trains here: `randlora_core.delta_of` takes the differences, `inject_delta` puts them on the pretrained model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.layer import Method, Update
from randlora_core.adapters.layer_kinds import Shape


@dataclass(frozen=True)
class DeltaConfig(AdapterConfig):
    """Settings of frozen full updates.

    Args:
        rank: The largest possible rank, that is the largest smaller side of the layers; it sets nothing.

    Raises:
        ValueError: If a dropout or a rank pattern is given, which could have no effect.
    """

    method = "delta"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout or self.rank_pattern:
            raise ValueError(
                f"a frozen update has no dropout and no rank to choose, got dropout={self.dropout!r} and "
                f"rank_pattern={self.rank_pattern!r}"
            )


class DeltaUpdate(Update):
    """A full update of one layer: `delta` (out, in), 0 until it is set, without gradient."""

    limits_rank = False

    def __init__(self, config: DeltaConfig, shape: Shape, bases: None, weight: Tensor) -> None:
        super().__init__(config, shape)
        self.delta = nn.Parameter(torch.zeros(shape, **self.parameters_like(weight)), requires_grad=False)

    @staticmethod
    def num_parameters(config: AdapterConfig, shape: Shape) -> int:
        """None: the update is frozen."""
        return 0

    def delta_weight(self) -> Tensor:
        """As in `Update`."""
        return self.delta.to(torch.promote_types(self.delta.dtype, torch.float32))

    def added_output(self, x: Tensor) -> Tensor:
        """As in `Update`."""
        return F.linear(self.input_like_parameters(x), self.delta)


METHOD = Method(DeltaConfig, DeltaUpdate)
