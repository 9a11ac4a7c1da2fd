"""Tells whether a case fits into memory, from an estimate that allocates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from randlora_core.benchmarking.cases import Case
from randlora_core.models.work import pass_cost

MEMORY_INFO = Path("/proc/meminfo")
LIMIT, USAGE = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
"""What Linux tells of the machine's memory and of the container's."""


def check_fits(case: Case, methods: Sequence[str], device: torch.device, advice: str) -> None:
    """Refuse a case that is larger than the memory that is free now; where that is not known, nothing is checked.

    Args:
        case: What is to be measured.
        methods: Names of the methods on it.
        device: Where.
        advice: What to do about it, for the error message.

    Raises:
        ValueError: Naming both numbers.
    """
    needed, available = needed_bytes(case, methods), available_bytes(device)
    if available is not None and needed > available:
        raise ValueError(
            f"{case.name}: a step needs about {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB of "
            f"{device.type} memory are free; {advice}"
        )


def needed_bytes(case: Case, methods: Sequence[str]) -> int:
    """Estimates the bytes of the model, of its copy in full fine-tuning with gradient and AdamW's state, and of a step.

    The adapters' own tensors are left out. What a step keeps is what autograd saves where all weights train: LoRA and
    RandLoRA save nearly the same. Under autocast three quarters of it are counted, since norms and sums of residuals
    stay in float32 and the weights get 16-bit copies.
    """
    meta = torch.device("meta")
    module = case.build(meta).requires_grad_(True)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    inputs = case.inputs(meta)
    saved = pass_cost(lambda: module(inputs)).saved_bytes
    return weights * (5 if "full" in methods else 1) + (3 * saved // 4 if case.half else saved)


def available_bytes(device: torch.device) -> int | None:
    """Tells the bytes that are free on a CUDA device or, for a CPU, on the machine and in its container, if known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not MEMORY_INFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMORY_INFO.read_text().splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return None
    available = 1024 * int(lines["MemAvailable"].split()[0])
    limit = LIMIT.read_text().strip() if LIMIT.exists() and USAGE.exists() else "max"
    return available if limit == "max" else min(available, int(limit) - int(USAGE.read_text()))
