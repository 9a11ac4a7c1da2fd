"""Compute paths of RandLoRA's update. `randlora_linear` is the entry; the rest are its parts."""

from randlora_core.ops.linear import added_output, delta, randlora_linear, scaled_a

__all__ = ["added_output", "delta", "randlora_linear", "scaled_a"]
