"""The one training loop, on Accelerate."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from randlora_core.experiment.optimiser import cosine, make_optimiser, set_learning_rate
from randlora_core.experiment.seeding import seed_global
from randlora_core.experiment.state import Progress, load_state, save_state

REPORT_STEPS = {"cpu": 1}
"""Steps between two readings of the loss, by device type; a reading waits for the device."""
DEFAULT_REPORT_STEPS = 10


@dataclass(frozen=True)
class FitSettings:
    """What `fit` does; see `TrainingConfig` for the meaning of the shared names.

    Attributes:
        steps: Optimiser steps.
        accumulate: Micro-batches per step.
        seed: The run's seed; `fit` itself uses its dropout stream.
        evaluate_every: Steps between calls of `evaluate`; None for never.
        workers: Processes that prepare micro-batches ahead; 0 prepares them in this one.
    """

    steps: int
    learning_rate: float
    accumulate: int = 1
    weight_decay: float = 0.1
    clip: float | None = 1.0
    precision: str = "bf16"
    seed: int = 0
    evaluate_every: int | None = None
    workers: int = 0


@dataclass(frozen=True)
class Resume:
    """Where the resumable state lies, whose it is, and how many seconds may pass before it is written again."""

    path: Path
    key: str
    seconds: float = 60.0


@dataclass
class FitResult:
    """What training left besides the weights.

    Attributes:
        losses: Loss of each optimiser step, mean over its micro-batches.
        validation: (step, score) pairs.
        seconds: Training time without evaluation, over all the parts of a resumed run.
        resumed_at: Steps that were already done when this process began.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_at: int = 0


@contextlib.contextmanager
def compute(device: torch.device, precision: str) -> Iterator[None]:
    """The context in which models are run, in training and in evaluation.

    The autocast is not Accelerate's, whose precision is one per process. On CPUs attention takes the plain path: at 36
    tokens under bf16, a training step of the small CLIP took 0.17 s with it and 0.50 s with the fused kernel.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def fit(
    objective: nn.Module,
    batches: Dataset,
    settings: FitSettings,
    device: torch.device,
    *,
    resume: Resume | None = None,
    on_step: Callable[[int, float], None] | None = None,
    evaluate: Callable[[], float] | None = None,
) -> FitResult:
    """Trains an objective's trainable parameters in place.

    A run that is killed and called again with the same arguments gives the same losses and weights to the bit: its
    state is written between steps, and all randomness is a function of seed and step.

    Args:
        objective: Module whose forward takes a micro-batch (*tensors) and gives its scalar loss.
        batches: Micro-batch i, a tuple of CPU tensors, for i in [0, steps * accumulate); a function of i alone.
        settings: The optimiser's and the loop's settings.
        device: Where to train.
        resume: Where to keep resumable state; None for nowhere.
        on_step: Called with the number of steps done and the latest loss, every step on a CPU, less often elsewhere.
        evaluate: Gives a validation score, called every `settings.evaluate_every` steps.

    Returns:
        Losses, scores and seconds.

    Raises:
        FloatingPointError: The loss is not finite.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state after the last whole step has been written.
        OSError: The state cannot be written.
    """
    return _Loop(objective, settings, device, resume).run(batches, on_step, evaluate)


class _Loop:
    """The moving parts of one call of `fit`."""

    def __init__(self, objective: nn.Module, settings: FitSettings, device: torch.device, resume: Resume | None):
        from accelerate import Accelerator

        self.settings, self.resume = settings, resume
        self.accelerator = Accelerator(
            mixed_precision="no", cpu=device.type == "cpu", gradient_accumulation_steps=settings.accumulate
        )
        self.device = self.accelerator.device
        objective.to(self.device)
        optimiser = make_optimiser(
            objective.parameters(), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.objective, self.optimiser = self.accelerator.prepare(objective, optimiser)
        self.trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.losses = torch.zeros(settings.steps, device=self.device)
        self.result = FitResult()
        self.step = 0
        self.started = self.written = 0.0

    def run(
        self,
        batches: Dataset,
        on_step: Callable[[int, float], None] | None,
        evaluate: Callable[[], float] | None,
    ) -> FitResult:
        """Does the steps that are left."""
        self._restore()
        micro_batches = iter(self._loader(batches))
        with _stop_between_steps() as stop:
            self.started = self.written = time.perf_counter()
            while self.step < self.settings.steps:
                self._optimise(micro_batches)
                self.step += 1
                if self._is_due(REPORT_STEPS.get(self.device.type, DEFAULT_REPORT_STEPS)):
                    self._report(on_step)
                if evaluate is not None and self.settings.evaluate_every and self._is_due(self.settings.evaluate_every):
                    self._score(evaluate)
                self._keep(stop)
            self._count_seconds()
        self.result.losses = self.losses.tolist()
        return self.result

    def _loader(self, batches: Dataset) -> DataLoader:
        remaining = range(self.step * self.settings.accumulate, self.settings.steps * self.settings.accumulate)
        return DataLoader(
            batches,
            batch_size=None,
            sampler=remaining,
            num_workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _optimise(self, micro_batches: Iterator[Sequence[Tensor]]) -> None:
        """One optimiser step: forward and backward over its micro-batches, clip, update."""
        settings, index = self.settings, self.step
        self.objective.train()
        set_learning_rate(self.optimiser, settings.learning_rate * cosine(index, settings.steps))
        for micro in range(settings.accumulate):
            batch = [tensor.to(self.device, non_blocking=True) for tensor in next(micro_batches)]
            seed_global(settings.seed, "dropout", index, micro)
            with self.accelerator.accumulate(self.objective):
                with compute(self.device, settings.precision):
                    loss = self.objective(*batch)
                self.accelerator.backward(loss)
                self.losses[index] += loss.detach() / settings.accumulate
                if settings.clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.trained, settings.clip)
                self.optimiser.step()
                self.optimiser.zero_grad()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _report(self, on_step: Callable[[int, float], None] | None) -> None:
        finite = torch.isfinite(self.losses[: self.step])
        if not finite.all():
            first = int((~finite).nonzero()[0])
            value, rate = float(self.losses[first]), self.settings.learning_rate
            raise FloatingPointError(f"the loss is {value} at step {first + 1} with learning rate {rate:g}")
        if on_step is not None:
            on_step(self.step, float(self.losses[self.step - 1]))

    def _score(self, evaluate: Callable[[], float]) -> None:
        self._count_seconds()
        self.result.validation.append((self.step, evaluate()))
        self.started = time.perf_counter()

    def _keep(self, stop: _Stop) -> None:
        """Writes the state when it is time or a stop is asked for, and stops."""
        if self.step == self.settings.steps:
            return
        if self.resume is not None and (stop or time.perf_counter() - self.written >= self.resume.seconds):
            self._count_seconds()
            progress = Progress(self.resume.key, self.step, self.result.seconds, tuple(self.result.validation))
            save_state(self.resume.path, *self._unwrapped(), self.losses, progress)
            self.started = self.written = time.perf_counter()
        if stop:
            raise KeyboardInterrupt(f"stopped after step {self.step} of {self.settings.steps}")

    def _count_seconds(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.result.seconds += time.perf_counter() - self.started

    def _restore(self) -> None:
        if self.resume is None:
            return
        progress = load_state(self.resume.path, *self._unwrapped(), self.losses, self.resume.key)
        if progress is not None:
            self.step = self.result.resumed_at = progress.step
            self.result.seconds, self.result.validation = progress.seconds, list(progress.validation)

    def _unwrapped(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        return self.accelerator.unwrap_model(self.objective), self.optimiser


class _Stop:
    """Whether a signal asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    def request(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first asks to stop after the step, the second stops at once."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def _stop_between_steps() -> Iterator[_Stop]:
    """Turns SIGINT and SIGTERM into a request, since a step that is cut in half cannot be resumed to the bit."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.signal(number, stop.request) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
