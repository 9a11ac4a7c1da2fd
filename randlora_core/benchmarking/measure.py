"""Measures times of steps and of other functions in alternation, and the peak memory of a step, the second one."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from randlora_core.adapters.bases import SharedBases
from randlora_core.adapters.state import model_tensors, tensor_bytes
from randlora_core.benchmarking.cases import Case
from randlora_core.benchmarking.methods import MeasuredModule, apply_method

MIN_ROUNDS = 3
Item = TypeVar("Item")
Name = TypeVar("Name", bound=Hashable)


@dataclass
class Timing:
    """Holds the measurements of one method on one case.

    Attributes:
        method: Name of the method.
        trainable: Parameters that train.
        step_seconds: Forward and backward, one entry a round; rounds are aligned over methods.
        optimizer_seconds: A step of fused AdamW, likewise.
        peak_bytes: Peak memory of a whole step by `counter`; 0 if not measured.
        counter: What `peak_bytes` counts.
    """

    method: str
    trainable: int = 0
    step_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    counter: str = ""

    def quartiles(self) -> tuple[float, float, float]:
        """Computes the first quartile, median and third quartile of `step_seconds`."""
        return tuple(np.percentile(self.step_seconds, (25, 50, 75)))

    def ratio_to(self, other: Timing) -> tuple[float, float, float]:
        """Computes the quartiles of the step times relative to `other`'s in the same round."""
        return tuple(np.percentile(np.divide(self.step_seconds, other.step_seconds), (25, 50, 75)))


@contextlib.contextmanager
def _autocast(case: Case, device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=case.half):
        yield


class Step:
    """A training step of a method on a case: forward and backward, and the optimizer apart."""

    def __init__(self, case: Case, measured: MeasuredModule, inputs: Tensor) -> None:
        self.case, self.module, self.inputs = case, measured.module, inputs
        self.method, self.trained = measured.method, measured.trained
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6, fused=True) if self.trained else None
        self.upstream: Tensor | None = None

    def forward_backward(self) -> None:
        """Runs one forward and backward pass, with a fixed gradient of the output."""
        # Autocast keeps its cast of a leaf for all who ask again; within a network the input is no leaf.
        inputs = self.inputs.view_as(self.inputs)
        with _autocast(self.case, self.inputs.device):
            output = self.module(inputs)
        if self.upstream is None:
            self.upstream = torch.randn_like(output).div_(output.numel())
        if output.requires_grad:
            output.backward(self.upstream)

    def clear(self) -> None:
        """Drop all gradients."""
        self.inputs.grad = None
        for parameter in self.trained:
            parameter.grad = None

    def prepare_optimizer(self) -> None:
        """Make the optimizer's state, as a first step does."""
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimise()
        self.clear()

    def optimise(self) -> None:
        """Makes a step of the optimizer, if anything trains."""
        if self.optimizer is not None:
            self.optimizer.step()


def measure(
    case: Case, methods: Sequence[str], *, rounds: int, seconds: float, device: torch.device, memory: bool = True
) -> list[Timing]:
    """Measure methods on a case in one run.

    Every round steps every method once, in an order that turns from round to round, after a warm-up of one step.

    Args:
        case: What to measure on.
        methods: Names in `randlora_core.benchmarking.methods.MEASURED_METHODS`.
        rounds: Rounds at most; at least 3 are made.
        seconds: No round is begun after this time, once 3 are made.
        device: Where to run.
        memory: Whether to measure peak memory, in one more step each.
    """
    inputs = case.inputs(device)
    base = case.build(device)
    steps = [Step(case, apply_method(method, case, device, base), inputs) for method in methods]
    timings = {step.method: Timing(step.method, sum(p.numel() for p in step.trained)) for step in steps}
    _warm_up(steps, device)
    _time_rounds(steps, timings, rounds, seconds, device)
    while memory and steps:
        step = steps.pop(0)  # let go once measured: all methods on a large model do not fit beside a step's tensors
        timings[step.method].peak_bytes, timings[step.method].counter = peak_memory(step, device)
        del step
    return list(timings.values())


def _warm_up(steps: Sequence[Step], device: torch.device) -> None:
    """Steps each method once, then gives all of them one gradient of the output, since that of logits is large."""
    upstream: dict[object, Tensor] = {}
    for step in steps:
        _one_round(step, device)
        step.upstream = upstream.setdefault((step.upstream.shape, step.upstream.dtype), step.upstream)


def _time_rounds(
    steps: Sequence[Step], timings: Mapping[str, Timing], rounds: int, seconds: float, device: torch.device
) -> None:
    for turned in _alternated(steps, rounds, seconds):
        for step in turned:
            step_seconds, optimizer_seconds = _one_round(step, device)
            timings[step.method].step_seconds.append(step_seconds)
            timings[step.method].optimizer_seconds.append(optimizer_seconds)


def _alternated(items: Sequence[Item], rounds: int, seconds: float) -> Iterator[list[Item]]:
    """Gives the items once for each round: forwards, then backwards, and then from the next one on."""
    begin = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - begin > seconds:
            return
        first = number // 2 % len(items)
        turned = [*items[first:], *items[:first]]
        yield turned if number % 2 == 0 else turned[::-1]


def median_milliseconds(
    functions: Mapping[Name, Callable[[], object]], *, rounds: int, seconds: float, device: torch.device
) -> dict[Name, float]:
    """Times functions in alternated rounds, after two calls of each, and gives each one's median.

    On CUDA the times are those between events, and the GPU is waited for only after a round. Launches of a function
    then overlap with the work of the one before it, as they do within a network.

    Args:
        functions: What to call, by name.
        rounds: Rounds at most.
        seconds: No round is begun after this time, once 3 are made.
        device: Where the functions compute.
    """
    for function in functions.values():
        function()
        function()
    marks: dict[Name, list[tuple[Any, Any]]] = {name: [] for name in functions}
    _synchronise(device)
    for names in _alternated(tuple(functions), rounds, seconds):
        for name in names:
            begin = _mark(device)
            functions[name]()
            marks[name].append((begin, _mark(device)))
        _synchronise(device)
    return {name: statistics.median(_milliseconds(*pair) for pair in pairs) for name, pairs in marks.items()}


def _mark(device: torch.device) -> torch.cuda.Event | float:
    """Marks a moment: on CUDA the one at which the GPU has done all work before."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _milliseconds(begin: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    return 1e3 * (end - begin) if isinstance(begin, float) else begin.elapsed_time(end)


def measure_memory(case: Case, methods: Sequence[str], *, device: torch.device) -> dict[str, tuple[int, str]]:
    """Measures the `peak_memory` of a method's second step, for each method, holding only one of them at a time.

    In the first step libraries allocate what they keep for all later ones, such as 32 MiB on a Hopper GPU for cuBLAS in
    each of the two threads that compute forward and backward. It would be counted for the first method alone.
    """
    inputs = case.inputs(device)
    peaks = {}
    for method in methods:
        step = Step(case, apply_method(method, case, device), inputs)
        step.forward_backward()
        step.prepare_optimizer()
        peaks[method] = peak_memory(step, device)
        del step
    return peaks


def _one_round(step: Step, device: torch.device) -> tuple[float, float]:
    step_seconds = _seconds(step.forward_backward, device)
    optimizer_seconds = _seconds(step.optimise, device)
    step.clear()
    return step_seconds, optimizer_seconds


def _seconds(function: Callable[[], None], device: torch.device) -> float:
    _synchronise(device)
    begin = time.perf_counter()
    function()
    _synchronise(device)
    return time.perf_counter() - begin


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(step: Step, device: torch.device) -> tuple[int, str]:
    """Measures the peak bytes of a step with its optimizer, and names the counter.

    On CUDA that is max_memory_allocated less what was allocated before, on CPU the peak of live bytes from the
    profiler's allocations; in both cases the bytes of the module, its input and the optimizer's state are added. The
    gradient of the output is made after the forward pass, as within a network; it and the output are held until the
    step's end.
    """
    step.upstream = None
    held = tensor_bytes([*_module_tensors(step.module), step.inputs, *_state_tensors(step.optimizer)])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _whole_step(step)
        torch.cuda.synchronize(device)
        return held + torch.cuda.max_memory_allocated(device) - before, "torch.cuda.max_memory_allocated"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _whole_step(step)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return held + int(np.max(np.cumsum(changes), initial=0)), "live tensor bytes (torch.profiler)"


def _whole_step(step: Step) -> None:
    step.forward_backward()
    step.optimise()
    step.clear()


def _module_tensors(module: nn.Module) -> list[Tensor]:
    """Collects what the module keeps in memory, and the casts that shared bases keep."""
    bases = (part for part in module.modules() if isinstance(part, SharedBases))
    return [*model_tensors(module), *(kept for part in bases for kept in part.kept_casts())]


def _state_tensors(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    states = optimizer.state.values() if optimizer is not None else ()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]
