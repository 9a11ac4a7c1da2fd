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
(`randlora_core.ops.factors`). Bases with a block structure (`groups`) make the same equation cheaper
(`randlora_core.adapters.groups`).

Three variants change the equation:

    magnitude     the sum W0 + dW gets DoRA's trained norm per output ("randdora", the paper's Table 6)
    num_bases     fewer than ceil(d / r) bases, so that the rank is num_bases r (RandLoRA-b, section 6.3; there half of
                  full rank, with r chosen for the same number of parameters)
    distinct_a    dW = s (sum_j B_j Lambda_j) (sum_j A_j Gamma_j) with a matrix A_j (r, d) for every basis (RandLoRA-a,
                  section 6.3 and Table 2), so that the rank is r whatever n is, and rank can be told from number of
                  parameters. The paper's example for d = 768: r = 32 and n = 124 give 99,200 parameters, RandLoRA-6
                  has 99,072. The paper has no code for it; sums, and the scale outside of them, are as it prints them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import ops
from randlora_core.adapters.bases import Matrix, PackedBases, Part, RecomputedBases, SharedBases
from randlora_core.adapters.config import (
    IMPORTED,
    ScaledConfig,
    check_choice,
    check_seed,
    check_unseeded,
    is_imported,
    is_number,
    positive_integer,
)
from randlora_core.adapters.distributions import BASES, MIN_SPARSITY, distribution
from randlora_core.adapters.dora import MagnitudeUpdate
from randlora_core.adapters.groups import MAX, check_groups, check_groups_on, largest_groups
from randlora_core.adapters.layer import AdapterLayer, Method, Update
from randlora_core.adapters.layer_kinds import CONV1D, Shape, kind_of

INITS = ("lambda_zero", "gamma_zero")


@dataclass(frozen=True)
class RandLoRAConfig(ScaledConfig):
    """Settings of RandLoRA.

    Alpha defaults to 20 rank, PEFT's factor of 20. The paper's factors are 10 / r (CLIP) and 2 / sqrt(n) (LLM).

    Args:
        rank: Rank of one basis, at most the smaller side of every target. More rank means fewer parameters.
        basis: Distribution of the bases, a name of `randlora_core.adapters.distributions.BASES`; "imported" on adapters
            whose bases came from a file, where there is no seed.
        sparsity: s of basis "ternary", at least 2; P(+1) = P(-1) = 1 / s. `inject_adapter` replaces "very_sparse"
            by "ternary" with the s that it resolves to.
        seed: Seed of the bases, in [0, 2**63).
        scale_by_sqrt_bases: Divide the scale by sqrt(n), with each layer's own n.
        init: "lambda_zero": lambda = 0 and gamma = 1 / max(n, d), as in PEFT; the first step moves lambda.
            "gamma_zero": lambda = 1 / max(n, r) and gamma = 0, as in the authors' vision code; the first step moves
            gamma.
        magnitude: Add DoRA's trained magnitude per output.
        num_bases: Number n of bases on every layer, below ceil(d / r) of each; the update's rank is n r then. A mapping
            {d: n} gives one to the layers of each smaller side d. None stands for ceil(d / r), full rank.
        distinct_a: A matrix A_j for every basis, and both factors summed before their product (RandLoRA-a): the
            update's rank is r, and `num_bases` is required and has no limit.
        store_bases: False makes the bases anew, to the same bits, for each use in the forward and backward pass: no
            memory for them, at the cost of running the generator.
        packed_bases: Keep bases of signs in 2 bits each and unpack them for each use.
        groups: Number g of groups that inputs, outputs and the bases' rows and columns are divided into; a divisor of
            the rank. Bases are zero but where both groups are the same, and the update costs 1 / g of the work. 1 is
            for dense bases; `inject_adapter` replaces "max" by the largest g that divides every rank in use and that no
            layer's number of bases falls below.
        allow_rank_loss: Let `groups` be above a layer's number of bases, where the update may lose rank and outputs
            stop to depend on some inputs. It is a permission: a layer of at least `groups` bases is the same without
            it, also where the model has no other layers. With `groups` of 1 or "max", which are above no layer's
            number, it is refused.

    Raises:
        ValueError: If a value is outside its range, a setting has no effect beside the others, or the variants are
            combined in a way that is not defined.
    """

    method = "randlora"
    default_alpha_per_rank = 20.0
    neutral = {"groups": 1, "allow_rank_loss": False}  # noqa: RUF012

    _: KW_ONLY
    basis: str = "uniform"
    sparsity: float | None = None
    seed: int = 0
    scale_by_sqrt_bases: bool = False
    init: str = "lambda_zero"
    magnitude: bool = False
    num_bases: int | Mapping[int, int] | None = None
    distinct_a: bool = False
    store_bases: bool = True
    packed_bases: bool = False
    groups: int | Literal["max"] = 1
    allow_rank_loss: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_choice("basis", self.basis, (*BASES, IMPORTED))
        check_unseeded(self)
        check_choice("init", self.init, INITS)
        if self.basis != "ternary" and self.sparsity is not None:
            raise ValueError(f"sparsity={self.sparsity!r} has no effect with basis={self.basis!r}; use basis='ternary'")
        if self.basis == "ternary" and not (is_number(self.sparsity) and MIN_SPARSITY <= self.sparsity < math.inf):
            raise ValueError(f"basis='ternary' needs a finite sparsity of at least 2, got {self.sparsity!r}")
        if isinstance(self.num_bases, Mapping):
            by_side = {_side(d): positive_integer(f"num_bases[{d}]", n) for d, n in self.num_bases.items()}
            object.__setattr__(self, "num_bases", by_side)
        elif self.num_bases is not None:
            positive_integer("num_bases", self.num_bases)
        if self.distinct_a and self.num_bases is None:
            raise ValueError("distinct_a=True needs num_bases, since its rank does not depend on their number")
        if self.distinct_a and self.magnitude:
            raise ValueError("distinct_a=True is not defined with magnitude=True")
        self._check_storage()
        check_groups(
            self.groups,
            allow_rank_loss=self.allow_rank_loss,
            distinct_a=self.distinct_a,
            packed_bases=self.packed_bases,
        )

    def _check_storage(self) -> None:
        if is_imported(self) and (self.packed_bases or not self.store_bases):
            raise ValueError(f"basis={IMPORTED!r} is kept as it is: no packed_bases, and no store_bases=False")
        if self.packed_bases and not self.store_bases:
            raise ValueError("packed_bases=True has no effect with store_bases=False")
        if self.packed_bases and self.basis in ("uniform", "normal"):
            raise ValueError(f"packed_bases=True needs a basis of signs, not basis={self.basis!r}")

    def bases_on(self, shape: Shape) -> int:
        """Number n of bases on a layer of `shape` (out, in).

        Raises:
            ValueError: `num_bases` has none for the layer's smaller side.
        """
        if self.num_bases is None:
            return num_bases(self.rank, shape)
        if not isinstance(self.num_bases, Mapping):
            return self.num_bases
        if min(shape) not in self.num_bases:
            known = ", ".join(map(str, self.num_bases))
            raise ValueError(f"num_bases has no number for smaller side {min(shape)} of {tuple(shape)}; known: {known}")
        return self.num_bases[min(shape)]


def _side(key: object) -> int:
    """A key of `num_bases`; JSON has made text of it."""
    return positive_integer("a key of num_bases", int(key) if isinstance(key, str) and key.isdecimal() else key)


def num_bases(rank: int, shape: Shape) -> int:
    """The number n = ceil(d / r) for a layer of `shape`, d its smaller side."""
    return -(-min(shape) // rank)


class RandLoRAUpdate(Update):
    """RandLoRA on one layer: `randlora_lambda` (r, n), `randlora_gamma` (n, d)."""

    @classmethod
    def create(cls, config: RandLoRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> Update:
        """As in `Update`: the variant that the config asks for."""
        variant = DistinctAUpdate if config.distinct_a else RandDoRAUpdate if config.magnitude else RandLoRAUpdate
        return variant(config, shape, bases, weight)

    def __init__(self, config: RandLoRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape)
        self.bases = bases
        d, n = min(shape), config.bases_on(shape)
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
        full, n = num_bases(config.rank, shape), config.bases_on(shape)
        if config.num_bases is not None and n >= full and not config.distinct_a:
            raise ValueError(
                f"num_bases={n} takes nothing away from layer {name!r} of shape {tuple(shape)}, which "
                f"has full rank with {full} bases of rank {config.rank}; use fewer, or num_bases=None"
            )
        check_groups_on(name, config.groups, config.rank, n, allow_rank_loss=config.allow_rank_loss)

    @classmethod
    def resolve(cls, config: RandLoRAConfig, shapes: Mapping[str, Shape]) -> RandLoRAConfig:
        """As in `Update`: "very_sparse" becomes "ternary" with s = sqrt(d), d the largest smaller side.

        And `groups` "max" becomes the number that `largest_groups` finds, which may warn of it: what a layer does not
        allow is therefore refused before.
        """
        if config.basis == "very_sparse":
            s = max(MIN_SPARSITY, math.sqrt(max(min(shape) for shape in shapes.values())))
            config = dataclasses.replace(config, basis="ternary", sparsity=s)
        if config.groups != MAX:
            return config
        layers = {name: config.for_layer(name) for name in shapes}
        for name, layer in layers.items():
            cls.check(dataclasses.replace(layer, groups=1), name, shapes[name])
        ranks = {name: layer.rank for name, layer in layers.items()}
        bases = {name: layer.bases_on(shapes[name]) for name, layer in layers.items()}
        return dataclasses.replace(config, groups=largest_groups(ranks, bases))

    @classmethod
    def make_bases(cls, config: RandLoRAConfig, shapes: Sequence[Shape], device: torch.device | str) -> SharedBases:
        """As in `Update`: A (r, d_max), or (n_max, r, d_max) with `distinct_a`, and B (D_max, n_max, r).

        With groups both are the blocks: A (r / g, d_max) and B (D_max, n_max, r / g). They are divided by the standard
        deviation of the whole matrix, zeros included, so that non-zeros have the variance g and the scale is that of
        dense bases. With one row a group (g = r) A is of signs, which give lambda and gamma the same say everywhere.
        """
        d_max, larger_max = max(min(shape) for shape in shapes), max(max(shape) for shape in shapes)
        n_max = max(config.bases_on(shape) for shape in shapes)
        groups, rows = config.groups, config.rank // config.groups
        shape_a = (n_max, rows, d_max) if config.distinct_a else (rows, d_max)
        basis = "uniform" if is_imported(config) else config.basis  # imported: the shapes alone are asked for, on meta
        entries = distribution(basis, config.sparsity)
        entries_a = distribution("binary") if 1 < groups == config.rank else entries
        matrices = {
            "A": Matrix(shape_a, entries_a, math.sqrt(groups), groups),
            "B": Matrix((larger_max, n_max, rows), entries, math.sqrt(groups), groups),
        }
        storage = PackedBases if config.packed_bases else SharedBases if config.store_bases else RecomputedBases
        return storage(config.seed, matrices, device)

    @staticmethod
    def num_parameters(config: RandLoRAConfig, shape: Shape) -> int:
        """That is n (r + d), and out more with magnitude."""
        d, n = min(shape), config.bases_on(shape)
        return n * (config.rank + d) + (shape[0] if config.magnitude else 0)

    @property
    def scale(self) -> float:
        """Factor on the stored bases' product: the method's scale times the bases' units."""
        units = self.bases.units["A"] * self.bases.units["B"]
        n = self.randlora_gamma.shape[0]
        return self.config.scale * units / (math.sqrt(n) if self.config.scale_by_sqrt_bases else 1.0)

    def basis_slices(self) -> tuple[Tensor, Tensor]:
        """This layer's part of the shared matrices as stored: A (r, d), or (n, r, d) with `distinct_a`; B (D, n, r).

        With groups their blocks, A (r / g, d) and B (D, n, r / g).
        """
        return tuple(self.bases.matrix(*part) for part in self._parts())

    def _parts(self) -> tuple[Part, Part]:
        """Names and shapes of this layer's part of the shared matrices."""
        rows, (n, d) = self.config.rank // self.config.groups, self.randlora_gamma.shape
        return ("A", (rows, d)), ("B", (max(self.out_features, self.in_features), n, rows))

    def _operands(self) -> dict[str, Any]:
        """The arguments that functions of `randlora_core.ops` take beside the input."""
        basis_a, basis_b = self.basis_slices()
        return {
            "lambda_": self.randlora_lambda,
            "gamma": self.randlora_gamma,
            "basis_a": basis_a,
            "basis_b": basis_b,
            "scale": self.scale,
            "remake": self.bases.remakers(*self._parts()),
        }

    def delta_weight(self) -> Tensor:
        """As in `Update`."""
        dtype = torch.promote_types(self.randlora_lambda.dtype, torch.float32)
        lambda_, gamma = self.randlora_lambda.to(dtype), self.randlora_gamma.to(dtype)
        transposed = self.out_features < self.in_features
        return ops.delta(lambda_, gamma, *self.basis_slices(), self.scale, transposed=transposed)

    def added_output(self, x: Tensor) -> Tensor:
        """As in `Update`."""
        return ops.added_output(x, **self._operands())

    def forward(self, x: Tensor, layer: AdapterLayer) -> Tensor:
        """As in `Update`."""
        return ops.randlora_linear(
            x,
            **self._operands(),
            base=layer.base,
            weight=layer.dense_weight if computes_jointly(layer.base) else None,
            bias=layer.bias,
            dropout=self.dropout if self.training and self.config.dropout > 0.0 else None,
        )


def computes_jointly(base: nn.Module) -> bool:
    """Whether the frozen layer's product may be computed together with the update's, without calling the layer.

    True for a floating-point nn.Linear or Conv1D with its own `forward`, a frozen weight, and no hooks.
    """
    if type(base).forward is not nn.Linear.forward and kind_of(base) is not CONV1D:
        return False
    watched = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    return not watched and "forward" not in vars(base) and not base.weight.requires_grad


class RandDoRAUpdate(MagnitudeUpdate, RandLoRAUpdate):
    """RandLoRA with `lora_magnitude_vector` (out,)."""

    def __init__(self, config: RandLoRAConfig, shape: Shape, bases: SharedBases, weight: Tensor) -> None:
        super().__init__(config, shape, bases, weight)
        self.init_magnitude(weight)

    def forward(self, x: Tensor, layer: AdapterLayer) -> Tensor:
        """As in `Update`; without dropout as m (x (W0 + dW)^T) / ||W0 + dW|| + bias, one product where that may be."""
        if (self.training and self.config.dropout > 0.0) or not computes_jointly(layer.base):
            return super().forward(x, layer)
        given = {"base": layer.base, "weight": layer.dense_weight, "bias": layer.bias}
        result = ops.randlora_linear(x, **self._operands(), **given)
        ratio = self.lora_magnitude_vector / self._norms(layer.dense_weight())
        return ops.rescaled(result, None, layer.bias, ratio)


class DistinctAUpdate(RandLoRAUpdate):
    """RandLoRA-a: the same parameters, spent on two summed factors. See `distinct_a` at the top of this file."""

    def _parts(self) -> tuple[Part, Part]:
        """As in `RandLoRAUpdate`: A has an axis for the bases."""
        (_, (r, d)), part_b = super()._parts()
        return ("A", (len(self.randlora_gamma), r, d)), part_b

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

    def forward(self, x: Tensor, layer: AdapterLayer) -> Tensor:
        """As in `Update`: the frozen layer's output plus `added_output`."""
        return Update.forward(self, x, layer)


METHOD = Method(RandLoRAConfig, RandLoRAUpdate)
