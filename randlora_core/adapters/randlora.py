"""RandLoRA: full-rank updates from frozen random bases and trained diagonal matrices.

Paper: Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", ICLR 2025,
https://arxiv.org/abs/2502.00987, equation 4.

    dW = s sum_{j=1..n} B_j Lambda_j A Gamma_j        s = alpha / r, optionally / sqrt(n)

    D >= d    larger and smaller side of the layer; the printed form is (D, d), and its transpose where out < in
    r         rank of one basis                            n = ceil(d / r) bases reach full rank
    A         (r, d)     frozen, shared                    B_j       (D, r)  frozen, shared
    Lambda_j  diagonal, column j of lambda (r, n)          Gamma_j   diagonal, row j of gamma (n, d); both trained

One A (r, d_max) and one B (D_max, n_max, r) serve every layer of a model through slices (the paper's C.5.1). A higher
rank means fewer parameters: n (r + d), about d^2 / r + d. Names, layouts and the pairing of random columns follow PEFT
(`randlora_core.ops.linear`).

With `magnitude`, the sum W0 + dW gets DoRA's trained norm per output ("randdora", the paper's Table 6).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from randlora_core import ops
from randlora_core.adapters.bases import BASES, MIN_SPARSITY, Matrix, SharedBases, distribution
from randlora_core.adapters.config import ScaledConfig, check_choice, check_seed, is_number
from randlora_core.adapters.dora import MagnitudeUpdate
from randlora_core.adapters.layer import AdapterLayer, Method, Shape, Update

INITS = ("lambda_zero", "gamma_zero")


@dataclass(frozen=True)
class RandLoRAConfig(ScaledConfig):
    """Settings of RandLoRA.

    Alpha defaults to 20 rank, PEFT's factor of 20. The paper's factors are 10 / r (CLIP) and 2 / sqrt(n) (LLM).

    Args:
        rank: Rank of one basis, at most the smaller side of every target. More rank means fewer parameters.
        basis: Distribution of the bases, a name of `randlora_core.adapters.bases.BASES`.
        sparsity: s of basis "ternary", at least 2; P(+1) = P(-1) = 1 / s. `inject_adapter` replaces "very_sparse"
            by "ternary" with the s that it resolves to.
        seed: Seed of the bases, in [0, 2**63).
        scale_by_sqrt_bases: Divide the scale by sqrt(n), with each layer's own n.
        init: "lambda_zero": lambda = 0 and gamma = 1 / max(n, d), as in PEFT; the first step moves lambda.
            "gamma_zero": lambda = 1 / max(n, r) and gamma = 0, as in the authors' vision code; the first step moves
        gamma. magnitude: Add DoRA's trained magnitude per output.

    Raises:
        ValueError: If a value is outside its range, or `sparsity` is given for a basis that has none.
    """

    method = "randlora"
    default_alpha_per_rank = 20.0

    _: KW_ONLY
    basis: str = "uniform"
    sparsity: float | None = None
    seed: int = 0
    scale_by_sqrt_bases: bool = False
    init: str = "lambda_zero"
    magnitude: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_choice("basis", self.basis, BASES)
        check_choice("init", self.init, INITS)
        if self.basis != "ternary" and self.sparsity is not None:
            raise ValueError(f"sparsity={self.sparsity!r} has no effect with basis={self.basis!r}; use basis='ternary'")
        if self.basis == "ternary" and not (is_number(self.sparsity) and MIN_SPARSITY <= self.sparsity < math.inf):
            raise ValueError(f"basis='ternary' needs a finite sparsity of at least 2, got {self.sparsity!r}")


def num_bases(rank: int, shape: Shape) -> int:
    """N = ceil(d / r) for a layer of `shape`, d its smaller side."""
    return -(-min(shape) // rank)


class RandLoRAUpdate(Update):
    """RandLoRA on one layer: `randlora_lambda` (r, n), `randlora_gamma` (n, d)."""

    @classmethod
    def create(cls, config: RandLoRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> RandLoRAUpdate:
        """As in `Update`: the variant with magnitude where the config asks for it."""
        return (RandDoRAUpdate if config.magnitude else RandLoRAUpdate)(config, shape, bases, weight)

    def __init__(self, config: RandLoRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape)
        self.bases = bases
        d, n = min(shape), num_bases(config.rank, shape)
        if config.init == "lambda_zero":
            lambda_, gamma = 0.0, 1.0 / max(n, d)
        else:
            lambda_, gamma = 1.0 / max(n, config.rank), 0.0
        self.randlora_lambda = nn.Parameter(torch.full((config.rank, n), lambda_, **self.parameters_like(weight)))
        self.randlora_gamma = nn.Parameter(torch.full((n, d), gamma, **self.parameters_like(weight)))

    @classmethod
    def check(cls, config: RandLoRAConfig, name: str, shape: Shape) -> None:
        """As in `Update`."""
        if config.rank > min(shape):
            raise ValueError(
                f"rank {config.rank} is above the smaller side of layer {name!r} of shape {tuple(shape)}; "
                f"the limit is {min(shape)}"
            )

    @classmethod
    def resolve(cls, config: RandLoRAConfig, shapes: Sequence[Shape]) -> RandLoRAConfig:
        """As in `Update`: "very_sparse" becomes "ternary" with s = sqrt(d), d the largest smaller side."""
        if config.basis != "very_sparse":
            return config
        s = max(MIN_SPARSITY, math.sqrt(max(min(shape) for shape in shapes)))
        return dataclasses.replace(config, basis="ternary", sparsity=s)

    @classmethod
    def make_bases(cls, config: RandLoRAConfig, shapes: Sequence[Shape], device: torch.device | str) -> SharedBases:
        """As in `Update`: A (r, d_max) and B (D_max, n_max, r)."""
        d_max, larger_max = max(min(shape) for shape in shapes), max(max(shape) for shape in shapes)
        n_max = num_bases(config.rank, (d_max, d_max))
        matrices = {"A": Matrix((config.rank, d_max)), "B": Matrix((larger_max, n_max, config.rank))}
        return SharedBases(config.seed, matrices, distribution(config.basis, config.sparsity), device)

    @staticmethod
    def num_parameters(config: RandLoRAConfig, shape: Shape) -> int:
        """N (r + d), and out more with magnitude."""
        d, n = min(shape), num_bases(config.rank, shape)
        return n * (config.rank + d) + (shape[0] if config.magnitude else 0)

    @property
    def scale(self) -> float:
        """Factor on the stored bases' product: the method's scale times the bases' units."""
        units = self.bases.units["A"] * self.bases.units["B"]
        n = self.randlora_gamma.shape[0]
        return self.config.scale * units / (math.sqrt(n) if self.config.scale_by_sqrt_bases else 1.0)

    def basis_slices(self) -> tuple[Tensor, Tensor]:
        """This layer's part of the shared matrices as stored: A (r, d), B (D, n, r)."""
        n, d = self.randlora_gamma.shape
        return self.bases.A[:, :d], self.bases.B[: max(self.out_features, self.in_features), :n]

    def delta_weight(self) -> Tensor:
        """As in `Update`."""
        dtype = torch.promote_types(self.randlora_lambda.dtype, torch.float32)
        lambda_, gamma = self.randlora_lambda.to(dtype), self.randlora_gamma.to(dtype)
        transposed = self.out_features < self.in_features
        return ops.delta(lambda_, gamma, *self.basis_slices(), self.scale, transposed=transposed)

    def added_output(self, x: Tensor) -> Tensor:
        """As in `Update`."""
        return ops.added_output(x, self.randlora_lambda, self.randlora_gamma, *self.basis_slices(), self.scale)

    def forward(self, x: Tensor, layer: AdapterLayer) -> Tensor:
        """As in `Update`."""
        return ops.randlora_linear(
            x,
            self.randlora_lambda,
            self.randlora_gamma,
            *self.basis_slices(),
            self.scale,
            base=layer.base,
            weight=layer.dense_weight,
            bias=layer.bias,
            dropout=self.dropout if self.training and self.config.dropout > 0.0 else None,
        )


class RandDoRAUpdate(MagnitudeUpdate, RandLoRAUpdate):
    """RandLoRA with `lora_magnitude_vector` (out,)."""

    def __init__(self, config: RandLoRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape, bases, weight)
        self.init_magnitude(weight)


METHOD = Method(RandLoRAConfig, RandLoRAUpdate)
