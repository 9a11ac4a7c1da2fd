"""The progress bar of a fine-tuning."""

from __future__ import annotations

import time
from types import TracebackType

from commonsense_reasoning.batches import ExampleBatches
from randlora_core.experiment.loop.hardware import is_first_process


class ProgressBar:
    """Shows step, loss, tokens per second and the time left on standard error, in the first process only.

    Args:
        batches: The micro-batches, whose tokens are counted.
        steps: Optimizer steps of the run.
        accumulate: Micro-batches of a step.
        done: Steps that were done before this process began.
    """

    def __init__(self, batches: ExampleBatches, *, steps: int, accumulate: int, done: int):
        from tqdm import tqdm

        self.batches, self.accumulate, self.step, self.tokens = batches, accumulate, done, 0
        settings = {"total": steps, "initial": done, "unit": "step", "dynamic_ncols": True}
        self.bar = tqdm(desc="training", disable=not is_first_process(), **settings)
        self.validation_loss: float | None = None
        self.begun = time.perf_counter()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def update(self, step: int, loss: float) -> float:
        """Moves the bar to a step.

        Returns:
            Tokens per second since the bar was made, validation included.
        """
        micro_batches = range(self.step * self.accumulate, step * self.accumulate)
        self.tokens += sum(self.batches.num_tokens(index) for index in micro_batches)
        speed = self.tokens / max(time.perf_counter() - self.begun, 1e-9)
        validated = "" if self.validation_loss is None else f", validation {self.validation_loss:.4f}"
        self.bar.set_postfix_str(f"loss {loss:.4f}{validated}, {speed:,.0f} tokens/s", refresh=False)
        self.bar.update(step - self.step)
        self.step = step
        return speed
