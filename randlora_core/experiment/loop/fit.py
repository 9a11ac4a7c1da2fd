"""The one training loop, on Accelerate."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from randlora_core.experiment.loop.distributed import is_placed, is_sharded, make_accelerator, shard
from randlora_core.experiment.loop.loader import training_loader
from randlora_core.experiment.loop.optimizer import learning_rate_share, make_optimizer, set_learning_rate_share
from randlora_core.experiment.loop.seeding import seed_global
from randlora_core.experiment.loop.state import (
    Progress,
    Resume,
    Tensors,
    copy_trained,
    load_state,
    restore_trained,
    save_state,
    whole,
)
from randlora_core.experiment.loop.stopping import Stop, stop_between_steps

REPORT_STEPS = {"cpu": 1}
"""Steps between two readings of the loss, by device type; a reading waits for the device."""
DEFAULT_REPORT_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What `fit` does; see `TrainingConfig` and configs/run.yaml for the settings' defaults.

    Attributes:
        steps: Optimizer steps.
        accumulate: Micro-batches per step, over all processes.
        learning_rate: Peak of the schedule.
        weight_decay: AdamW's, on every trained parameter.
        clip: Largest norm of the gradient; None for no limit.
        precision: Number format of the products; parameters and optimizer state keep theirs.
        schedule: How the learning rate falls, see `learning_rate_share`.
        warmup_steps: Steps in which the learning rate rises to its peak.
        floor: Share of the peak learning rate at the last step.
        seed: The run's seed; `fit` itself uses its dropout stream.
        validate_every: Steps between calls of `validate`, which is also called at the end; None for never.
        keep_best: Whether the model ends with the weights of its best validation score instead of the last ones.
        workers: Processes that prepare micro-batches ahead; 0 prepares them in this one.
        part_learning_rates: Peaks of parts of the module that do not take `learning_rate`, see `make_optimizer`.
    """

    steps: int
    accumulate: int
    learning_rate: float
    weight_decay: float
    clip: float | None
    precision: Literal["bf16", "fp32"]
    schedule: Literal["cosine", "linear"]
    warmup_steps: int
    floor: float
    seed: int
    validate_every: int | None
    keep_best: bool
    workers: int
    part_learning_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass
class FitResult:
    """What training left besides the weights.

    Attributes:
        losses: Loss of each optimizer step: the mean over all terms of its micro-batches.
        validation: (step, score) pairs.
        seconds: Training time without validation, over all the parts of a resumed run.
        waited_seconds: The part of `seconds` in which the loop waited for data.
        prepare_seconds: Time that this process' share of a micro-batch took to prepare, in this process or in a worker
            beside it, on average over the steps it did; None for none. Its inverse, times the workers of a process, is
            the rate at which all micro-batches could have come.
        earlier_seconds: The part of `seconds` that processes before this one took.
        resumed_at: Steps that were already done when this process began.
        best_step: The step whose weights the model has, where `keep_best` chose it; else None.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    waited_seconds: float = 0.0
    prepare_seconds: float | None = None
    earlier_seconds: float = 0.0
    resumed_at: int = 0
    best_step: int | None = None


@contextlib.contextmanager
def compute(device: torch.device, precision: str) -> Iterator[None]:
    """The context in which models are run, in training and in evaluation.

    The autocast is not Accelerate's, whose precision is one per process. On a GPU fp32 numbers are multiplied as they
    are, so that records from processors and GPUs belong together: PyTorch's default rounds those of convolutions to
    TF32's ten bits. That stays so for the backward pass, which is run outside.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # Attention takes torch's choice, on CPUs the fused kernel. Its time as a multiple of the plain path's, forward and
    # backward of two transformer blocks of widths 192 to 576 on two cores of a CPU with bf16 products:
    #   tokens        36            50            257           512
    #   fp32     1.00          0.98 - 1.00   0.89 - 1.02   0.81 - 0.97
    #   bf16     1.17 - 1.37   1.11 - 1.22   0.96 - 1.01   0.68 - 0.90
    # A context cannot know the number of tokens, and one that forced the plain path would be over when a checkpointed
    # model runs its forward again in the backward, which fails.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def fit(
    module: nn.Module,
    batches: Dataset,
    settings: FitSettings,
    device: torch.device,
    *,
    resume: Resume | None = None,
    on_step: Callable[[int, float], None] | None = None,
    validate: Callable[[], float] | None = None,
) -> FitResult:
    """Trains a module's trainable parameters in place.

    The gradient of a step is that of the mean loss over all terms (samples, tokens) of its micro-batches, however they
    are cut. In several processes (torchrun, accelerate launch) each takes its part of every step's micro-batches, so
    that losses and weights are those of one process up to rounding. Where they are not a multiple of the processes,
    each takes a part of every micro-batch; then dropout draws other masks than one process does.

    A run that is killed and called again with the same arguments gives the same losses and weights to the bit: its
    state is written between steps, and all randomness is a function of seed, step and micro-batch.

    A loss or a gradient that is not finite ends the training, since no later step can mend it. A loss that only grows
    does not: it may come down again, and any limit would be one more hyper-parameter that decides between methods.

    Args:
        module: Its forward takes a micro-batch (*tensors) and gives the sum of the losses over the micro-batch's terms
            and the number of these terms, an integer or a tensor of no dimension. It is moved to the device unless it
            is already placed, see `is_placed`.
        batches: Micro-batch i, a tuple of CPU tensors, for i in [0, steps * accumulate); a function of i alone. A data
            set whose micro-batches can be split has a method `shard(part, parts)` that gives the data set of the parts.
        settings: The optimizer's and the loop's settings.
        device: Where to train.
        resume: Where to keep resumable state; None for nowhere.
        on_step: Called with the number of steps done and the latest loss, every step on a CPU, less often elsewhere;
            of several processes only the first calls it.
        validate: Gives a score of which more is better; called in every process.

    Returns:
        Losses, scores and seconds.

    Raises:
        ValueError: Nothing is trainable in the module or in a part with a learning rate of its own, a step has no
            terms, `keep_best` without validation, micro-batches that can be neither dealt out evenly to the processes
            nor split, or a device other than that Accelerate uses in this process.
        FloatingPointError: The loss or the norm of the gradient is not finite.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state after the last whole step has been written.
        OSError: The state cannot be written.
    """
    if settings.keep_best and (validate is None or settings.validate_every is None):
        raise ValueError("keep_best=True needs a validation to choose by: give validate and validate_every")
    return _Loop(module, batches, settings, device, resume).run(on_step, validate)


class _Loop:
    """The moving parts of one call of `fit`."""

    def __init__(
        self, module: nn.Module, batches: Dataset, settings: FitSettings, device: torch.device, resume: Resume | None
    ):
        self.settings, self.resume = settings, resume
        self.accelerator, self.shares = make_accelerator(device, settings.accumulate, batches)
        self.device = self.accelerator.device
        if not is_sharded(module):
            shard(module, self.device)
        if not is_sharded(module):  # a sharded model averages its gradients over the processes itself
            module = self.accelerator.prepare_model(module, device_placement=not is_placed(module))
        self.module = module
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(
            self._unwrapped(),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            part_learning_rates=settings.part_learning_rates,
        )
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.losses, self.num_terms, self.norms = torch.zeros(3, settings.steps, device=self.device)
        self.result = FitResult()
        self.best: Tensors = {}
        self.step = 0
        self.started = self.written = self.prepared_seconds = 0.0
        self._restore()
        self.micro_batches = iter(self._loader(batches))

    def run(self, on_step: Callable[[int, float], None] | None, validate: Callable[[], float] | None) -> FitResult:
        """Does the steps that are left."""
        settings = self.settings
        with stop_between_steps() as stop:
            self.started = self.written = time.perf_counter()
            self.module.train()
            while self.step < settings.steps:
                self._optimize()
                self.step += 1
                reporting = self._is_due(REPORT_STEPS.get(self.device.type, DEFAULT_REPORT_STEPS))
                if reporting:
                    self._report(on_step)
                if validate is not None and settings.validate_every and self._is_due(settings.validate_every):
                    self._validate(validate)
                if reporting or self._is_due_here() or self.accelerator.num_processes == 1:
                    self._keep(stop)
            self._count_seconds()
        if self.best:
            restore_trained(self._unwrapped(), self.best)
        self.result.losses = self.losses.tolist()
        if done := self.step - self.result.resumed_at:
            self.result.prepare_seconds = self.prepared_seconds / (done * settings.accumulate)
        return self.result

    def _loader(self, batches: Dataset) -> DataLoader:
        """The micro-batches that are left, dealt out to the processes in turn: process p has p, p + processes, ...

        Those that are split are not dealt out: every process has its parts of all of them.
        """
        from accelerate.data_loader import prepare_data_loader

        accumulate, accelerator = self.settings.accumulate, self.accelerator
        loader = training_loader(
            batches.shard(accelerator.process_index, accelerator.num_processes) if self.shares.are_split else batches,
            range(self.step * accumulate, self.settings.steps * accumulate),
            workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
        )
        if not self.shares.are_split:
            return accelerator.prepare_data_loader(loader)
        alone = {"num_processes": 1, "process_index": 0}
        return prepare_data_loader(loader, self.device, **alone, put_on_device=True, non_blocking=True)

    def _optimize(self) -> None:
        """One optimizer step: forward and backward over its micro-batches, scale, clip, update."""
        settings, index = self.settings, self.step
        share = learning_rate_share(
            index,
            schedule=settings.schedule,
            steps=settings.steps,
            warmup_steps=settings.warmup_steps,
            floor=settings.floor,
        )
        set_learning_rate_share(self.optimizer, share)
        totals = torch.zeros(2, device=self.device)
        part = (self.accelerator.process_index,) if self.shares.are_split else ()
        for micro in self.shares.micro_batches:
            batch = self._next_batch()
            seed_global(settings.seed, "dropout", index, micro, *part)
            with self.accelerator.accumulate(self.module):
                with compute(self.device, settings.precision):
                    loss_sum, num_terms = self.module(*batch)
                self.accelerator.backward(loss_sum)
            totals[0] += loss_sum.detach().to(self.device)
            totals[1] += num_terms.to(self.device) if isinstance(num_terms, Tensor) else num_terms
        totals = self.accelerator.reduce(totals, reduction="sum")
        self.losses[index], self.num_terms[index] = totals[0] / totals[1], totals[1]
        self._scale_gradients(len(self.shares.micro_batches) * self.accelerator.num_processes / totals[1])
        limit = math.inf if settings.clip is None else settings.clip
        self.norms[index] = whole(self.accelerator.clip_grad_norm_(self.trained, limit))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _next_batch(self) -> Sequence[Tensor]:
        began = time.perf_counter()
        batch, seconds = next(self.micro_batches)
        self.result.waited_seconds += time.perf_counter() - began
        self.prepared_seconds += seconds
        return batch

    def _scale_gradients(self, scale: Tensor) -> None:
        """Turns what backward left into the gradient of the mean over all terms of the step.

        Backward left the gradient of the sum of the losses, divided twice: Accelerate divides by the micro-batches of
        one process, and the processes are averaged. The number of terms is known only after the last
        forward, so it divides last. This also keeps the gradients inside the model as large as those of a single term:
        the gradients of a mean over many tokens can vanish in fp16, in which 8-bit layers compute.
        """
        by_device = defaultdict(list)
        for parameter in self.trained:
            if parameter.grad is not None:
                gradient = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
                by_device[gradient.device].append(gradient)
        for device, gradients in by_device.items():
            torch._foreach_mul_(gradients, scale.to(device))

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _report(self, on_step: Callable[[int, float], None] | None) -> None:
        self._check()
        if on_step is not None and self.accelerator.is_main_process:
            on_step(self.step, float(self.losses[self.step - 1]))

    def _check(self) -> None:
        """Raises for the first step without terms, or whose loss or gradient is not finite."""
        finite = torch.isfinite(self.losses[: self.step]) & torch.isfinite(self.norms[: self.step])
        if finite.all():
            return
        index = int((~finite).nonzero()[0])
        loss, num_terms, norm = (float(values[index]) for values in (self.losses, self.num_terms, self.norms))
        if num_terms == 0:
            raise ValueError(f"step {index + 1} has no terms to take the loss of: its micro-batches count 0 in all")
        what, value = ("norm of the gradient", norm) if math.isfinite(loss) else ("loss", loss)
        rate = self.settings.learning_rate
        raise FloatingPointError(f"the {what} is {value} at step {index + 1} with learning rate {rate:g}")

    def _validate(self, validate: Callable[[], float]) -> None:
        from accelerate.utils import broadcast_object_list

        self._count_seconds()
        (score,) = broadcast_object_list([float(validate())])  # one score, so that all processes keep the same weights
        result, best = self.result, dict(self.result.validation).get(self.result.best_step, -math.inf)
        result.validation.append((self.step, score))
        if self.settings.keep_best and score > best:
            result.best_step, self.best = self.step, copy_trained(self._unwrapped())
        self.module.train()
        self.started = time.perf_counter()

    def _keep(self, stop: Stop) -> None:
        """Writes the state when it is time or a stop is asked for, and stops.

        After a training that took longer than the time between two states, the last state is written, too, so that
        an evaluation that is killed does not cost the training.
        """
        last, now = self.step == self.settings.steps, time.perf_counter()
        elapsed = self.result.seconds + now - self.started if last else now - self.written
        due = self._is_due_here() or (self.resume is not None and self.resume.is_due(elapsed))
        stopping, due = self._agree(bool(stop) and not last, due)
        if self.resume is not None and (stopping or due):
            self._save(self.resume)
        if stopping:
            raise KeyboardInterrupt(f"stopped after step {self.step} of {self.settings.steps}")

    def _is_due_here(self) -> bool:
        """Whether a state is written after this step whatever the time."""
        return self.resume is not None and self.resume.is_due_at(self.step)

    def _agree(self, *wishes: bool) -> Sequence[bool]:
        """What any of the processes wants, since what follows has to be done by all or by none."""
        if self.accelerator.num_processes == 1:
            return wishes
        votes = torch.tensor(wishes, dtype=torch.float32, device=self.device)
        return (self.accelerator.reduce(votes, reduction="sum") > 0).tolist()

    def _save(self, resume: Resume) -> None:
        self._check()
        self._count_seconds()
        result = self.result
        progress = Progress(
            key=resume.key,
            step=self.step,
            seconds=result.seconds,
            waited_seconds=result.waited_seconds,
            validation=tuple(result.validation),
            best_step=result.best_step,
        )
        model, write = self._unwrapped(), self.accelerator.is_main_process
        save_state(resume.place(self.step), model, self.optimizer, self.losses, self.best, progress, write=write)
        if write:
            resume.on_kept(self.step)
        self.accelerator.wait_for_everyone()  # a process that came back earlier could look for the state too early
        self.started = self.written = time.perf_counter()

    def _restore(self) -> None:
        if self.resume is None:
            return
        loaded = load_state(self.resume.latest(), self._unwrapped(), self.optimizer, self.losses, self.resume.key)
        if loaded is None:
            return
        progress, self.best = loaded
        self.step = progress.step
        self.result = FitResult(
            validation=list(progress.validation),
            seconds=progress.seconds,
            waited_seconds=progress.waited_seconds,
            earlier_seconds=progress.seconds,
            resumed_at=progress.step,
            best_step=progress.best_step,
        )

    def _count_seconds(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.result.seconds += time.perf_counter() - self.started

    def _unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.module)
