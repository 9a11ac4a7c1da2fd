"""RandLoRA-a: RandLoRA's parameters spent on a low-rank update, to tell rank from number of parameters.

Paper: Albert et al., ICLR 2025, https://arxiv.org/abs/2502.00987, section 6.3 and Table 2.

    dW = s (sum_{j=1..n} B_j Lambda_j) (sum_{j=1..n} A_j Gamma_j)        s = alpha / r, optionally / sqrt(n)

    A_j       (r, d)     frozen, shared by the layers       Gamma_j   diagonal, row j of gamma (n, d)
    B_j       (D, r)     frozen, shared by the layers       Lambda_j  diagonal, column j of lambda (r, n)

D >= d are the layer's sides; dW is (D, d), and its transpose where out < in. The rank is r whatever n is, and the
parameters are RandLoRA's n (r + d). The paper's example for d = 768: r = 32, n = 124, 99,200 parameters, against 99,072
of RandLoRA-6. The paper has no code for it; sums, and the scale outside of them, are as it prints them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import ops
from randlora_core.adapters.bases import Part, SharedBases
from randlora_core.adapters.layer import Shape, Update

if TYPE_CHECKING:
    from randlora_core.adapters.randlora import RandLoRAConfig


class DistinctAUpdate(Update):
    """RandLoRA-a on one layer: `randlora_lambda` (r, n), `randlora_gamma` (n, d)."""

    def __init__(self, config: RandLoRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape)
        self.bases = bases
        d, n, r = min(shape), config.num_bases, config.rank
        lambda_, gamma = (0.0, 1.0 / max(n, d)) if config.init == "lambda_zero" else (1.0 / max(n, r), 0.0)
        self.randlora_lambda = nn.Parameter(torch.full((r, n), lambda_, **self.parameters_like(weight)))
        self.randlora_gamma = nn.Parameter(torch.full((n, d), gamma, **self.parameters_like(weight)))

    @staticmethod
    def num_parameters(config: RandLoRAConfig, shape: Shape) -> int:
        """That is n (r + d)."""
        return config.num_bases * (config.rank + min(shape))

    @property
    def scale(self) -> float:
        """Factor on the stored bases' product: the method's scale times the bases' units."""
        n = self.config.num_bases
        root = math.sqrt(n) if self.config.scale_by_sqrt_bases else 1.0
        return self.config.scale * self.bases.units["A"] * self.bases.units["B"] / root

    def _parts(self) -> tuple[Part, Part]:
        """Names and shapes of this layer's part of the shared matrices."""
        larger, smaller = max(self.out_features, self.in_features), min(self.out_features, self.in_features)
        n, r = self.config.num_bases, self.config.rank
        return ("A", (n, r, smaller)), ("B", (larger, n, r))

    def basis_slices(self) -> tuple[Tensor, Tensor]:
        """This layer's part of the shared matrices as stored: A (n, r, d), B (D, n, r)."""
        return tuple(self.bases.matrix(*part) for part in self._parts())

    def factors(self) -> tuple[Tensor, Tensor]:
        """The scaled sum of B_j Lambda_j (D, r) and the sum of A_j Gamma_j (r, d), float32 at least."""
        dtype = torch.promote_types(self.randlora_lambda.dtype, torch.float32)
        lambda_, gamma = self.randlora_lambda.to(dtype) * self.scale, self.randlora_gamma.to(dtype)
        (a, b), again = self.basis_slices(), self.bases.remakers(*self._parts()) or (None, None)
        return ops.contract("Djk,kj->Dk", b, lambda_, again[1]), ops.contract("jkd,jd->kd", a, gamma, again[0])

    def _maps(self) -> tuple[Tensor, Tensor]:
        """The update as two linear maps: (r, in) and (out, r)."""
        b, a = self.factors()
        return (b.T, a.T) if self.out_features < self.in_features else (a, b)

    def delta_weight(self) -> Tensor:
        """As in `Update`."""
        inward, outward = self._maps()
        return outward @ inward

    def added_output(self, x: Tensor) -> Tensor:
        """As in `Update`."""
        inward, outward = (factor.to(self.randlora_lambda.dtype) for factor in self._maps())
        return F.linear(F.linear(self.input_like_parameters(x), inward), outward)
