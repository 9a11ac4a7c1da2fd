"""AdamW and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

FLOOR = 0.01
"""The schedule ends at this share of the peak, as in the paper's released code."""


def cosine(step: int, steps: int, floor: float = FLOOR) -> float:
    """Share of the peak learning rate at a step: half a cosine from 1 at step 0 to `floor` at the last step.

    Args:
        step: Number of the step, from 0 to steps - 1.
        steps: Optimiser steps of the run.
        floor: Share at the last step.

    Returns:
        A number in [floor, 1].
    """
    progress = step / max(1, steps - 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimiser(
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


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = value
