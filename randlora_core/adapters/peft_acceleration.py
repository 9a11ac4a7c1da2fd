"""Lets existing PEFT models with RandLoRA compute by `randlora_core.ops`.

PEFT computes the update by activations, in float32, and keeps the scaled A and an activation of every layer for the
backward pass. `accelerate_peft` replaces how the layers compute and nothing else: parameters, buffers, names,
checkpoints, merging and configuration stay PEFT's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from randlora_core import ops
from randlora_core.adapters.layer_kinds import kind_of
from randlora_core.adapters.randlora import computes_jointly


def accelerate_peft(peft_model: nn.Module) -> nn.Module:
    """Let a PEFT model with RandLoRA adapters compute faster and in less memory.

    Adapters of the same layers that are added, activated or merged afterwards are served as well; layers that are
    adapted afterwards are PEFT's own until this is called again.

    Bases that `export_peft` wrote from groups are recognised by their zeros and cost no more than here, except in a
    compiled model.

    Args:
        peft_model: What `peft.get_peft_model` or `PeftModel.from_pretrained` gave, or a model with such layers inside.

    Returns:
        The same model.

    Raises:
        ValueError: If no layer of the model has a RandLoRA adapter of PEFT's, or one has a `forward` of its own that is
            neither ours nor a hook of accelerate's; no layer is changed then.
    """
    layers = {name: module for name, module in peft_model.named_modules() if _is_randlora(module)}
    if not layers:
        raise ValueError(f"{type(peft_model).__name__} has no RandLoRA layers of PEFT's")
    places = {name: _place(name, layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        setattr(layer, places[name], functools.partial(_forward, layer))
    return peft_model


def _place(name: str, layer: nn.Module) -> str:
    """Names the attribute that our computation goes to: what accelerate wraps, where it has wrapped `forward`."""
    if "_old_forward" in vars(layer):
        return "_old_forward"
    own = vars(layer).get("forward")
    if own is not None and getattr(own, "func", None) is not _forward:
        raise ValueError(f"layer {name!r} has a forward of its own, {own!r}; remove it first")
    return "forward"


def _is_randlora(module: nn.Module) -> bool:
    # Known by name, so that nobody has to import PEFT for it.
    return any(c.__name__ == "RandLoraLayer" and c.__module__.startswith("peft.") for c in type(module).__mro__)


def _forward(self: nn.Module, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Computes a layer of PEFT's, by PEFT's own code unless exactly one adapter acts on plain input."""
    active = [name for name in self.active_adapters if name in self.randlora_lambda]
    if self.disable_adapters or self.merged or len(active) != 1 or args or kwargs:
        return type(self).forward(self, x, *args, **kwargs)
    (name,) = active
    gamma = self.randlora_gamma[name]
    num_bases, smaller = gamma.shape
    larger = max(self.in_features, self.out_features)
    base = self.get_base_layer()
    dropout = self.randlora_dropout[name]
    a, b = _matrices(self.randlora_A[name], self.randlora_B[name])
    output = ops.randlora_linear(
        x,
        self.randlora_lambda[name],
        gamma,
        a[:, :smaller].to(x.device),
        b[:larger, :num_bases].to(x.device),
        self.scaling[name],
        base=base,
        weight=_weight(base),
        bias=base.bias,
        dropout=dropout if dropout.training and not isinstance(dropout, nn.Identity) else None,
    )
    return output.to(x.dtype)


def _matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Gives PEFT's A (r, 1, m) and B (M, n, r) as (r, m) and (M, n, r), or their blocks where they are in groups.

    Which one it is is found out once, and again where the values may have changed; torch.compile, which cannot look at
    values, gets the matrices as they are.
    """
    a = a[:, 0]
    if torch.compiler.is_compiling() or a.is_meta:
        return a, b
    key = (a.data_ptr(), *(None if matrix.is_inference() else matrix._version for matrix in (a, b)))
    known, blocks = _blocks.get(b, (None, None))
    if known != key:
        groups = ops.find_groups(a, b)
        blocks = None if groups == 1 else (ops.blocks_of_a(a, groups), ops.blocks_of_b(b, groups))
        _blocks[b] = (key, blocks)
    return (a, b) if blocks is None else blocks


_blocks = WeakIdKeyDictionary()
"""B of PEFT -> which values were looked at, and the blocks of A and B where they are in groups."""


def _weight(base: nn.Module) -> Callable[[], Tensor] | None:
    """Gives the dense weight (out, in) of the layer that PEFT wraps, where the two may be computed together."""
    return (lambda: kind_of(base).dense(base)) if computes_jointly(base) else None
