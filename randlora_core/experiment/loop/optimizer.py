"""AdamW and the schedules of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

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
    parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over trainable parameters, in one fused update per step.

    Raises:
        ValueError: No parameter is trainable.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter is trainable")
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = value
