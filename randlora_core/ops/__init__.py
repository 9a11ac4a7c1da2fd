"""Computes the adapters' updates. RandLoRA's layers enter by `randlora_linear`; `force_path` settles their path."""

from randlora_core.ops.blocks import blocks_of_a, blocks_of_b, dense_a, dense_b, find_groups
from randlora_core.ops.contraction import contract
from randlora_core.ops.cost import PATHS
from randlora_core.ops.factors import delta, scaled_a
from randlora_core.ops.linear import added_output, compute_dtype, force_path, randlora_linear
from randlora_core.ops.magnitude import rescaled
from randlora_core.ops.triton_kernels import use_triton

__all__ = [
    "PATHS",
    "added_output",
    "blocks_of_a",
    "blocks_of_b",
    "compute_dtype",
    "contract",
    "delta",
    "dense_a",
    "dense_b",
    "find_groups",
    "force_path",
    "randlora_linear",
    "rescaled",
    "scaled_a",
    "use_triton",
]
