"""Peak memory and seconds of a stretch of code, with the counter named."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Measurement:
    """What a stretch of code took; filled when it ends.

    Attributes:
        seconds: Wall-clock time, with the accelerator's queue drained at both ends.
        peak_bytes: Largest memory during the stretch, by `counter`.
        baseline_bytes: The same counter's current value at its start: interpreter, libraries, model, data.
        counter: What was read.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    baseline_bytes: int = 0
    counter: str = ""

    def memory(self) -> dict[str, int | str]:
        """The record's section on memory."""
        return {"peak_bytes": self.peak_bytes, "baseline_bytes": self.baseline_bytes, "counter": self.counter}


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Measurement]:
    """Measures its body on a device; one such stretch at a time, since the peak counters belong to the process."""
    measurement = Measurement()
    counter = _CudaCounter(device) if device.type == "cuda" else _ResidentCounter()
    measurement.counter, measurement.baseline_bytes = counter.name, counter.reset()
    start = time.perf_counter()
    try:
        yield measurement
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        measurement.seconds = time.perf_counter() - start
        measurement.peak_bytes = counter.peak()


class _CudaCounter:
    name = "torch.cuda.max_memory_allocated"

    def __init__(self, device: torch.device):
        self.device = device

    def reset(self) -> int:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)


class _ResidentCounter:
    """Resident memory of the process; where Linux lets us reset its high-water mark, of the stretch alone."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.name = "VmHWM (resident set, reset at the start)"
        except OSError:
            self.name = "ru_maxrss (resident set since the process began)"

    def reset(self) -> int:
        return _status_bytes("VmRSS") or _max_resident_bytes()

    def peak(self) -> int:
        return (_status_bytes("VmHWM") if self.name.startswith("VmHWM") else None) or _max_resident_bytes()


def _status_bytes(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _max_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
