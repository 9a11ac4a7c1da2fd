"""What a quantised model saves, and errors of runs that have run out of memory, with what to change."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from randlora_core.adapters.state import model_tensors, quantised_layers, tensor_bytes

SIGNS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What the messages of RuntimeErrors say that are not of a class of their own: torch's CPU allocator, CUDA, cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on a GPU or on the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextlib.contextmanager
def memory_advice(batch_size: int, accumulate: int, evaluation_batch_size: int) -> Iterator[None]:
    """Tells, where its body runs out of memory, which settings make a run need less.

    Args:
        batch_size: Examples per optimizer step.
        accumulate: Micro-batches per step.
        evaluation_batch_size: Examples per forward pass in evaluation.

    Raises:
        MemoryError: In place of the error of torch or Python that said so, with one line of advice.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        more = next((count for count in range(accumulate + 1, batch_size + 1) if batch_size % count == 0), None)
        smaller = f"training.accumulate={more} (now {accumulate})" if more else "a smaller backbone"
        micro = f"training needs less with {smaller}: micro-batches are of {batch_size // accumulate} examples"
        evaluation = f"evaluation with a smaller evaluate.batch_size (now {evaluation_batch_size})"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise MemoryError(f"out of memory: {first}; {micro}; {evaluation}") from error


def quantised_bytes(model: nn.Module) -> dict[str, int]:
    """What the record of a quantised model's run says beside its peak; nothing for other models.

    Returns:
        model_bytes: What the model keeps in memory: weights, buffers and adapters.
        model_bytes_bf16: The same with its quantised weights in bf16.
    """
    layers = quantised_layers(model)
    if not layers:
        return {}
    held = tensor_bytes(model_tensors(model))
    codes = tensor_bytes(tensor for layer, kind in layers.items() for tensor in kind.tensors(layer).values())
    entries = sum(math.prod(kind.shape(layer)) for layer, kind in layers.items())
    return {"model_bytes": held, "model_bytes_bf16": held - codes + torch.bfloat16.itemsize * entries}
