"""What a run takes, from the work that its settings mean and a rate measured on this machine in a fraction of a second.

Passes through the model are counted in forward passes, as in FLOPs = 6 x parameters x tokens for training all weights:

    full fine-tuning          3      the pass, the gradients of the activations, and those of the weights
    LoRA, DoRA, VeRA, NoLA    2      the weights are frozen, and the adapter's own products are small
    RandLoRA                  3      its gradient is a product as large as a weight's (`randlora_core.ops.cost`)

The rate is that of a product of square matrices, which no model reaches, and reading data is not counted: the result is
a lower bound. Memory is the weights (with gradient and AdamW's two moments where all train) and what autograd keeps of
a micro-batch, three quarters of it under bf16, since norms and sums stay in float32.
"""

from __future__ import annotations

import functools
import time

import torch

from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import Work

PASSES = {"full": 3, "randlora": 3}
OTHER_PASSES = 2
FULL_COPIES = 4
SIDE, SECONDS = 1024, 0.2


@functools.lru_cache(maxsize=8)
def measured_rate(device: torch.device, precision: str, threads: int) -> float:
    """Floating-point operations per second of products of square matrices.

    Args:
        device: Where runs are done.
        precision: "bf16" or "fp32".
        threads: Threads of a run on a CPU.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        factor = torch.ones(SIDE, SIDE, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        _multiply(factor)
        begin, products = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < SECONDS or not products:
            _multiply(factor)
            products += 1
    finally:
        torch.set_num_threads(before)
    return 2 * SIDE**3 * products / elapsed


def _multiply(factor: torch.Tensor) -> None:
    factor @ factor
    if factor.device.type == "cuda":
        torch.cuda.synchronize(factor.device)


def work_seconds(work: Work, config: RunConfig, rate: float) -> float:
    """Seconds of a run's work at a rate in floating-point operations per second."""
    passes = PASSES.get(config.adapter.method, OTHER_PASSES)
    return (passes * work.train_flops + work.evaluate_flops) / rate


def work_bytes(work: Work, config: RunConfig) -> int:
    """Bytes that a run's model, optimizer and activations take."""
    copies = FULL_COPIES if config.adapter.method == "full" else 1
    share = 0.75 if config.training.precision == "bf16" else 1.0
    return round(copies * work.model_bytes + share * work.saved_bytes)
