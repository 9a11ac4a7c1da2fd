"""VeRA: trained vectors around one shared pair of frozen random matrices.

Paper: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024, https://arxiv.org/abs/2310.11454.

    dW = diag(b) B diag(d) A

    A   (r, in)    frozen, shared: kaiming uniform, variance 2 / in_max       d   (r,)     trained, d_initial
    B   (out, r)   frozen, shared: kaiming uniform, variance 2 / r            b   (out,)   trained, 0

Layout and scale follow PEFT: in_max is the largest input of the targets, and there is no alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import ops
from randlora_core.adapters.bases import Matrix, Part, SharedBases
from randlora_core.adapters.config import (
    IMPORTED,
    AdapterConfig,
    check_choice,
    check_nonzero,
    check_seed,
    check_unseeded,
)
from randlora_core.adapters.distributions import distribution
from randlora_core.adapters.layer import Method, Update
from randlora_core.adapters.layer_kinds import Shape


@dataclass(frozen=True)
class VeRAConfig(AdapterConfig):
    """Settings of VeRA; it has no alpha, and its rank no upper limit.

    Args:
        rank: As in `AdapterConfig`.
        seed: Seed of the shared matrices, in [0, 2**63).
        d_initial: Initial value of d, finite and not zero.
        basis: "uniform"; "imported" on adapters whose matrices came from a file, where there is no seed.

    Raises:
        ValueError: If a value is outside its range.
    """

    method = "vera"

    _: KW_ONLY
    seed: int = 0
    d_initial: float = 0.1
    basis: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_choice("basis", self.basis, ("uniform", IMPORTED))
        check_unseeded(self)
        check_nonzero("d_initial", self.d_initial)


FEW_TOKENS_PER_RANK = 4
"""Up to so many tokens per rank, and in float32, `vera_lambda_b` scales the outputs, of which autograd keeps a copy.
With more tokens in 16 bits it scales the rows of B, which is smaller, and its gradient costs a product instead
(docs/performance.md)."""


class VeRAUpdate(Update):
    """VeRA on one layer: `vera_lambda_b` (out,), `vera_lambda_d` (r,)."""

    limits_rank = False

    def __init__(self, config: VeRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape)
        self.bases = bases
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.out_features, **self.parameters_like(weight)))
        self.vera_lambda_d = nn.Parameter(torch.full((config.rank,), config.d_initial, **self.parameters_like(weight)))

    @classmethod
    def make_bases(cls, config: VeRAConfig, shapes: Sequence[Shape], device: torch.device | str) -> SharedBases:
        """As in `Update`: A (r, in_max) and B (out_max, r)."""
        out_max, in_max = (max(sizes) for sizes in zip(*shapes, strict=True))
        uniform = distribution("uniform")
        matrices = {
            "A": Matrix((config.rank, in_max), uniform, unit=math.sqrt(2.0 / in_max)),
            "B": Matrix((out_max, config.rank), uniform, unit=math.sqrt(2.0 / config.rank)),
        }
        return SharedBases(config.seed, matrices, device)

    @staticmethod
    def num_parameters(config: AdapterConfig, shape: Shape) -> int:
        """That is r + out."""
        return config.rank + shape[0]

    def _parts(self) -> tuple[Part, Part]:
        """Names and shapes of this layer's part of the shared matrices."""
        return ("A", (self.config.rank, self.in_features)), ("B", (self.out_features, self.config.rank))

    def _scaled_d(self) -> Tensor:
        """`vera_lambda_d` times the factors that belong to the stored A and B."""
        return self.vera_lambda_d * (self.bases.units["A"] * self.bases.units["B"])

    def delta_weight(self) -> Tensor:
        """As in `Update`."""
        dtype = torch.promote_types(self.vera_lambda_b.dtype, torch.float32)
        a, b = (self.bases.matrix(*part).to(dtype) for part in self._parts())
        return (self.vera_lambda_b.to(dtype)[:, None] * b) @ (self._scaled_d().to(dtype)[:, None] * a)

    def added_output(self, x: Tensor) -> Tensor:
        """As in `Update`."""
        x = self.input_like_parameters(x)
        a, b = (self.bases.cast(*part, ops.compute_dtype(x)) for part in self._parts())
        product = F.linear(x, a)
        inner = product * self._scaled_d()
        if product.element_size() > 2 or product.numel() <= FEW_TOKENS_PER_RANK * self.config.rank**2:
            return F.linear(inner, b) * self.vera_lambda_b
        return F.linear(inner, self.vera_lambda_b[:, None] * b)


METHOD = Method(VeRAConfig, VeRAUpdate)
