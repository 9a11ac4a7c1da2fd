"""Fits that every process of a launch does together; each writes what it got to FOLDER/RANK.pt.

torchrun --nproc-per-node 2 fit_in_processes.py FOLDER
"""

import contextlib
import faulthandler
import math
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch
from fit_settings import settings
from fitting import (
    CPU,
    PARTS,
    Batches,
    Masks,
    Splittable,
    gradients_of_steps,
    sample_wise,
    trained_whole,
    weights,
)
from torch.nn.parallel import DistributedDataParallel

from randlora_core.experiment.loop.fit import Resume, fit
from randlora_core.experiment.loop.state import whole

SIZES = (3, 17, 5, 1, 9, 4)


def fitted(module, plan, kind=Batches, **arguments):
    """What a fit leaves, as tensors and plain values."""
    with gradients_of_steps(module.head) as gradients:
        result = fit(module, kind(plan.steps * plan.accumulate, SIZES), plan, CPU, **arguments)
    return {
        "losses": result.losses,
        "weights": {name: whole(tensor) for name, tensor in weights(module).items()},
        "gradients": gradients,
        "resumed_at": result.resumed_at,
        "best_step": result.best_step,
    }


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(sample_wise(), mesh=init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),)))


def stopped_and_resumed(make_module, plan, path, kind=Batches):
    """A run whose first process, alone, gets SIGTERM after the third step, and then the rest of it."""
    resume = Resume(path, "run", seconds=1e9)
    try:
        fitted(
            make_module(),
            plan,
            kind,
            resume=resume,
            on_step=lambda step, loss: step == 3 and os.kill(os.getpid(), signal.SIGTERM),
        )
    except KeyboardInterrupt as stop:
        return {"stop": str(stop), **fitted(make_module(), plan, kind, resume=resume)}


def masks(plan, kind=Batches):
    module = Masks()
    fitted(module, plan, kind)
    return torch.stack(module.masks)


def unsynchronised():
    """Micro-batches after which gradients were left as they were instead of being averaged over the processes."""
    with mock.patch.object(DistributedDataParallel, "no_sync", side_effect=contextlib.nullcontext) as no_sync:
        fitted(sample_wise(), settings(accumulate=6))
    return no_sync.call_count


class EveryThird(Resume):
    """A state after every third step, in files of their own."""

    def place(self, step):
        return self.path.with_name(f"step-{step}")

    def is_due_at(self, step):
        return step % 3 == 0


def kept_between_reports(folder):
    """Steps whose states are kept where, as on GPUs, losses are read and signals looked for at other steps only."""
    folder.mkdir(exist_ok=True)
    with mock.patch.dict("randlora_core.experiment.loop.fit.REPORT_STEPS", cpu=5):
        fitted(sample_wise(), settings(accumulate=2), resume=EveryThird(folder / "state", "run", math.inf))
    return sorted(path.name for path in folder.iterdir())


def uneven():
    try:
        fitted(sample_wise(), settings(accumulate=3))
    except ValueError as error:
        return str(error)


def run(folder):
    rank = int(os.environ["RANK"])
    scores = iter([0.1, 0.9, 0.2] if rank == 0 else [0.9, 0.1, 0.2])
    got = {
        "plain": fitted(sample_wise(), settings(accumulate=2)),
        "free": fitted(sample_wise(), settings(accumulate=2, clip=None)),
        "clipped": fitted(sample_wise(), settings(accumulate=4, clip=0.1)),
        "best": fitted(
            sample_wise(), settings(accumulate=2, validate_every=3, keep_best=True), validate=lambda: next(scores)
        ),
        "resumed": stopped_and_resumed(sample_wise, settings(accumulate=2), folder / "state"),
        "parts": stopped_and_resumed(
            trained_whole, settings(accumulate=2, part_learning_rates=PARTS), folder / "parts"
        ),
        "split": fitted(sample_wise(), settings(), Splittable),
        "split_3": stopped_and_resumed(sample_wise, settings(accumulate=3, clip=0.1), folder / "split", Splittable),
        "kept": kept_between_reports(folder / "kept"),
        "split_masks": masks(settings(accumulate=3), Splittable),
        "masks": masks(settings(accumulate=4)),
        "unsynchronised": unsynchronised(),
        "uneven": uneven(),
        "sharded": stopped_and_resumed(sharded, settings(accumulate=4, clip=0.1), folder / "sharded"),
    }
    torch.save(got, folder / f"{rank}.pt")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)  # a deadlock shows where it is
    run(Path(sys.argv[1]))
