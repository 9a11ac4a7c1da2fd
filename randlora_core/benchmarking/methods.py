"""Puts a method on the module of a case: none (frozen), full fine-tuning, the methods of this library, or PEFT's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from randlora_core.adapters import make_config
from randlora_core.adapters.inject import inject_adapter
from randlora_core.adapters.state import count_parameters
from randlora_core.benchmarking.cases import Case
from randlora_core.extras import needs_extra

VERA_RANK = 256
NOLA_RANK = 1


@dataclass(frozen=True)
class MeasuredModule:
    """Holds the module of a case with a method on it, and knows the parameters that train."""

    method: str
    module: nn.Module

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that need a gradient."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]


def _frozen(case: Case, module: nn.Module) -> nn.Module:
    return module


def _full(case: Case, module: nn.Module) -> nn.Module:
    return module.requires_grad_(True)


def _ours(method: str, case: Case, module: nn.Module, **settings: Any) -> nn.Module:
    return inject_adapter(module, make_config(method, rank=_rank(method, case), **settings), case.targets)


def _peft(method: str, case: Case, module: nn.Module) -> nn.Module:
    with needs_extra("peft"):
        import peft

    rank, targets = _rank(method, case), list(case.targets)
    configs: dict[str, Callable[[], object]] = {
        "lora": lambda: peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets),
        "dora": lambda: peft.LoraConfig(r=rank, lora_alpha=2 * rank, use_dora=True, target_modules=targets),
        "vera": lambda: peft.VeraConfig(r=rank, target_modules=targets),
        "randlora": lambda: peft.RandLoraConfig(r=rank, randlora_alpha=20 * rank, target_modules=targets),
    }
    return peft.get_peft_model(module, configs[method]())


def _accelerated(case: Case, module: nn.Module) -> nn.Module:
    from randlora_core import accelerate_peft

    return accelerate_peft(_peft("randlora", case, module))


MEASURED_METHODS: dict[str, Callable[[Case, nn.Module], nn.Module]] = {
    "frozen": _frozen,
    "full": _full,
    "lora": functools.partial(_ours, "lora"),
    "dora": functools.partial(_ours, "dora"),
    "vera": functools.partial(_ours, "vera"),
    "nola": functools.partial(_ours, "nola"),
    "randlora": functools.partial(_ours, "randlora"),
    "randlora_blocks": functools.partial(_ours, "randlora", groups="max"),
    "peft_lora": functools.partial(_peft, "lora"),
    "peft_dora": functools.partial(_peft, "dora"),
    "peft_vera": functools.partial(_peft, "vera"),
    "peft_randlora": functools.partial(_peft, "randlora"),
    "accelerated_peft_randlora": _accelerated,
}
"""Name in tables -> puts the method on a case's module. LoRA and DoRA get the rank whose parameters come closest to
RandLoRA's; RandLoRA with bases in groups has the same rank, and as many groups as the case's layers allow."""

MOST_GROUPS = 64
"""More groups than any block of `--groups` can have: at most the rank, and at most its width divided by the rank."""

METHODS_BY_GROUPS = {1: "randlora", **{groups: f"randlora_g{groups}" for groups in range(2, MOST_GROUPS + 1)}}
"""Number of groups that RandLoRA's bases are divided into -> method, beside `MEASURED_METHODS`; 1 is for dense ones."""

GROUPS = {method: groups for groups, method in METHODS_BY_GROUPS.items()}
"""The other way round: method -> number of groups."""


def _rank(method: str, case: Case) -> int:
    if method == "randlora":
        return case.rank
    if method in ("lora", "dora"):
        return equal_rank(case)
    return {"vera": VERA_RANK, "nola": NOLA_RANK}[method]


@functools.lru_cache
def equal_rank(case: Case) -> int:
    """Finds LoRA's rank whose trained parameters on the case's targets come closest to RandLoRA's."""

    def trained(method: str, rank: int) -> int:
        module = inject_adapter(case.build(torch.device("meta")), make_config(method, rank=rank), case.targets)
        return count_parameters(module).trainable

    return max(1, round(trained("randlora", case.rank) / trained("lora", 1)))


def apply_method(method: str, case: Case, device: torch.device, base: nn.Module | None = None) -> MeasuredModule:
    """Puts a method on the case's module and moves its parameters off their initial zeros.

    Args:
        method: Name in `MEASURED_METHODS` or `METHODS_BY_GROUPS`.
        case: What to put it on.
        device: Where.
        base: A module that the case built, whose tensors the result shares, so that many methods on a large model fit
            into memory; full fine-tuning and None take a module of their own.

    Raises:
        ValueError: If the method is unknown.
    """
    if method in MEASURED_METHODS:
        put_on = MEASURED_METHODS[method]
    elif method in GROUPS:
        put_on = functools.partial(_ours, "randlora", groups=GROUPS[method])
    else:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(MEASURED_METHODS)}")
    own = base is None or method == "full"
    torch.manual_seed(0)
    module = put_on(case, case.build(device) if own else sharing_copy(base)).to(device).train()
    if method not in ("frozen", "full"):
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    return MeasuredModule(method, module)


def sharing_copy(module: nn.Module) -> nn.Module:
    """Copies a module such that the copy holds the same parameters and buffers."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
