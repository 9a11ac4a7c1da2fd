"""NoLA: LoRA factors that are trained combinations of frozen random matrices.

Paper: Koohpayegani et al., "NOLA: Compressing LoRA using Linear Combination of Random Basis", ICLR 2024,
https://arxiv.org/abs/2310.02556; definition of the authors' code (https://github.com/UCDvision/NOLA).

    dW = (alpha / r) B A        A = A_0 + sum_{i=1..k} a_i A_i        B = sum_{j=1..l} b_j B_j

    A_0   (r, in)    frozen, kaiming uniform as LoRA's A: U(-1, 1) / sqrt(in)
    A_i   (r, in)    frozen, U(-1, 1) / sqrt(k)       a   (k,)   trained, 0
    B_j   (out, r)   frozen, U(-1, 1) / sqrt(l)       b   (l,)   trained, 0

So dW = 0 at the start, and the first step moves b only (`shifted` has another start, see below). The trainable
parameters, k + l a layer, depend neither on the rank nor on the layer's shape.

RandLoRA's authors use another NoLA in their vision code: no A_0, A_i and B_j of variance 1, all coefficients 1/1024 at
the start, rank 1. Its dW is not 0 at the start, so that it begins beside the pretrained model. With `shifted`, it is
theirs less the initial product:

    dW = (alpha / r) (B A - B' A')     B', A' from the coefficients b = 1/l, a = 1/k; A = sum_{i=1..k} a_i A_i

Where we differ: the authors draw matrices of its own for every layer, anew in each forward. Here layers of one rank
take slices of one shared set, as RandLoRA's and VeRA's layers do. A set per layer would multiply the memory by the
number of layers or the time by that of drawing; the coefficients, which are all that is learned, are each layer's own
either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import ops
from randlora_core.adapters.bases import Matrix, SharedBases
from randlora_core.adapters.config import AdapterConfig, ScaledConfig, check_seed, positive_integer
from randlora_core.adapters.distributions import distribution
from randlora_core.adapters.layer import Method, Update
from randlora_core.adapters.layer_kinds import Shape

_HALF_WIDTH = 1.0 / math.sqrt(3.0)  # turns entries of variance 1 into U(-1, 1)


@dataclass(frozen=True)
class NoLAConfig(ScaledConfig):
    """Settings of NoLA; alpha defaults to the rank.

    Args:
        rank: As in `AdapterConfig`.
        num_bases_a: k, at least 1.
        num_bases_b: l, at least 1.
        seed: Seed of the frozen matrices, in [0, 2**63).
        shifted: Use the definition of RandLoRA's authors, shifted so that dW = 0 at the start; their rank is 1.

    Raises:
        ValueError: If a value is outside its range.
    """

    method = "nola"
    default_alpha_per_rank = 1.0

    _: KW_ONLY
    num_bases_a: int = 1024
    num_bases_b: int = 1024
    seed: int = 0
    shifted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("num_bases_a", self.num_bases_a)
        positive_integer("num_bases_b", self.num_bases_b)
        check_seed(self.seed)


class NoLAUpdate(Update):
    """NoLA on one layer: `nola_alpha` (k,), `nola_beta` (l,)."""

    @classmethod
    def create(cls, config: NoLAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> NoLAUpdate:
        """As in `Update`: the shifted variant where the config asks for it."""
        return (ShiftedNoLAUpdate if config.shifted else NoLAUpdate)(config, shape, bases, weight)

    def __init__(self, config: NoLAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape)
        self.bases = bases
        self.nola_alpha = nn.Parameter(torch.zeros(config.num_bases_a, **self.parameters_like(weight)))
        self.nola_beta = nn.Parameter(torch.zeros(config.num_bases_b, **self.parameters_like(weight)))

    @classmethod
    def make_bases(cls, config: NoLAConfig, shapes: Sequence[Shape], device: torch.device | str) -> SharedBases:
        """As in `Update`: A0 (r, in_max), A (k, r, in_max) and B (l, out_max, r)."""
        out_max, in_max = (max(sizes) for sizes in zip(*shapes, strict=True))
        k, l, r = config.num_bases_a, config.num_bases_b, config.rank  # noqa: E741
        uniform = distribution("uniform")
        if config.shifted:
            matrices = {"A": Matrix((k, r, in_max), uniform), "B": Matrix((l, out_max, r), uniform)}
            return SharedBases(config.seed, matrices, device)
        matrices = {
            "A0": Matrix((r, in_max), uniform, unit=_HALF_WIDTH),
            "A": Matrix((k, r, in_max), uniform, unit=_HALF_WIDTH / math.sqrt(k)),
            "B": Matrix((l, out_max, r), uniform, unit=_HALF_WIDTH / math.sqrt(l)),
        }
        return SharedBases(config.seed, matrices, device)

    @staticmethod
    def num_parameters(config: AdapterConfig, shape: Shape) -> int:
        """That is k + l."""
        return config.num_bases_a + config.num_bases_b

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and the scaled B (out, r), in the parameters' dtype, float32 at least."""
        dtype = torch.promote_types(self.nola_alpha.dtype, torch.float32)
        unit = self.bases.units["A0"] / math.sqrt(self.in_features)
        a0 = self.bases.matrix("A0", (self.config.rank, self.in_features)).to(dtype) * unit
        return a0 + self._combination_a(self.nola_alpha), self._combination_b(self.nola_beta)

    def _combination_a(self, coefficients: Tensor) -> Tensor:
        """The sum of A_i with coefficients (k,), (r, in)."""
        coefficients = coefficients.to(torch.promote_types(coefficients.dtype, torch.float32))
        matrices = self.bases.matrix("A", (len(coefficients), self.config.rank, self.in_features))
        return ops.contract("kpq,k->pq", matrices, coefficients * self.bases.units["A"])

    def _combination_b(self, coefficients: Tensor) -> Tensor:
        """The scaled sum of B_j with coefficients (l,), (out, r)."""
        coefficients = coefficients.to(torch.promote_types(coefficients.dtype, torch.float32))
        matrices = self.bases.matrix("B", (len(coefficients), self.out_features, self.config.rank))
        return ops.contract("kpq,k->pq", matrices, coefficients * (self.bases.units["B"] * self.config.scale))

    def delta_weight(self) -> Tensor:
        """As in `Update`."""
        a, b = self.factors()
        return b @ a

    def added_output(self, x: Tensor) -> Tensor:
        """As in `Update`."""
        a, b = (factor.to(self.nola_alpha.dtype) for factor in self.factors())
        return F.linear(F.linear(self.input_like_parameters(x), a), b)


class ShiftedNoLAUpdate(NoLAUpdate):
    """The authors' NoLA of rank r less its initial product, as one product of rank 2 r.

    With A = A' + C and B = B' + E, C and E from the coefficients' distance to the start, B A - B' A' = B C + E A'. This
    form is exactly 0 at the start and cancels nothing later.
    """

    def __init__(self, config: NoLAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape, bases, weight)
        with torch.no_grad():
            for coefficients, initial in self._starts():
                coefficients.copy_(initial)

    def _starts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Each coefficient vector with its initial value, one over its size."""
        return tuple((c, torch.full_like(c, 1.0 / c.numel())) for c in (self.nola_alpha, self.nola_beta))

    def factors(self) -> tuple[Tensor, Tensor]:
        """[C; A'] (2 r, in) and the scaled [B, E] (out, 2 r)."""
        (alpha, alpha_0), (beta, beta_0) = self._starts()
        moved_a, a_0 = self._combination_a(alpha - alpha_0), self._combination_a(alpha_0)
        moved_b, b_0 = self._combination_b(beta - beta_0), self._combination_b(beta_0)
        return torch.cat([moved_a, a_0]), torch.cat([b_0 + moved_b, moved_b], dim=1)


METHOD = Method(NoLAConfig, NoLAUpdate)
