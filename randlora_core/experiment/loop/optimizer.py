"""AdamW and the schedules of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

DECAYS: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}
"""Schedules by name: how a learning rate falls from 1 to 0 while `progress` goes from 0 to 1."""


def learning_rate_share(step: int, *, schedule: str, steps: int, warmup_steps: int, floor: float) -> float:
    """Share of the peak learning rate that a step uses: a linear warm-up to 1, then a decay to `floor`.

    Warm-up step s uses (s + 1) / warmup_steps, so that no step has a rate of 0 and the last warm-up step has the peak,
    from which the decay starts. Without warm-up the first step has the peak. The last step has `floor`.

    Args:
        step: Number of the step, from 0 to steps - 1.
        schedule: A name of `DECAYS`.
        steps: Optimizer steps of the run.
        warmup_steps: Steps of the warm-up, from 0 to `steps`.
        floor: Share at the last step, in [0, 1].

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: Unknown schedule, or a warm-up that does not fit into the run.
    """
    if schedule not in DECAYS:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(DECAYS)}")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps={warmup_steps} is not between 0 and the run's {steps} steps")
    peak = max(0, warmup_steps - 1)
    if step < peak:
        return (step + 1) / warmup_steps
    progress = (step - peak) / max(1, steps - 1 - peak)
    return floor + (1 - floor) * DECAYS[schedule](progress)


def make_optimizer(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    part_learning_rates: Mapping[str, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """AdamW over a module's trainable parameters, in one fused update per group and step.

    Args:
        module: The module.
        learning_rate: Peak of the schedule.
        weight_decay: AdamW's, on every trained parameter.
        part_learning_rates: Peaks of parts of the module that have one of their own, by the part's name, such as
            {"head": 1e-3}; each part becomes a group behind that of all other parameters.

    Raises:
        ValueError: No parameter is trainable, or a part has none that is.
    """
    groups = {part: {"params": [], "lr": rate} for part, rate in {"": learning_rate, **part_learning_rates}.items()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = next((part for part in part_learning_rates if name.startswith(f"{part}.")), "")
            groups[part]["params"].append(parameter)
    for part in part_learning_rates:
        if not groups[part]["params"]:
            raise ValueError(
                f"{part!r} has a learning rate of its own, but the module trains no parameter of that name"
            )
    trained = [group for group in groups.values() if group["params"]]
    if not trained:
        raise ValueError("no parameter is trainable")
    optimizer = torch.optim.AdamW(trained, weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # where torch's own schedulers keep a group's peak
    return optimizer


def set_learning_rate_share(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets the learning rate of every group to a share of the group's peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
