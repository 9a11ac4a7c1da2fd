"""Chooses device, number format and workers of a run where its configuration leaves them open."""

from __future__ import annotations

import os

import torch

from randlora_core.machine import usable_cores


def pick_device(name: str) -> torch.device:
    """The device that a configuration names: auto, cpu or cuda.

    Raises:
        ValueError: cuda without a usable GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but torch sees no GPU; accepted here: auto, cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def is_first_process() -> bool:
    """Whether this is the process that writes records; of several that `accelerate launch` started it is the first."""
    return os.environ.get("RANK", "0") == "0"


def pick_precision(name: str, device: torch.device) -> str:
    """The number format of the products: bf16 or fp32 as named, and for auto bf16 where the hardware multiplies it.

    A processor without instructions for bf16 emulates it, at a tenth of fp32's speed and less.
    """
    if name != "auto":
        return name
    return "bf16" if multiplies_bf16(device) else "fp32"


def pick_workers(number: int | None, device: torch.device) -> int:
    """Processes that prepare images: as given, and for None one per core up to 8 beside an accelerator, else none.

    On a CPU they would take the cores that train.
    """
    if number is not None:
        return number
    return 0 if device.type == "cpu" else min(8, usable_cores())


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(_flags().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _flags() -> dict[str, object]:
    """The processor's features, as torch names them; PyTorch before 2.12 tells of one only."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
