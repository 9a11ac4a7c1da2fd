"""Runs that every process of a launch does together; each process writes their gradients to FOLDER/RANK.pt.

torchrun --nproc-per-node 2 runs_in_processes.py FOLDER, which holds runs.json: a list of overrides for each run
"""

import faulthandler
import json
import os
import sys
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from commonsense_reasoning.experiment import EXPERIMENT
from randlora_core.experiment.commands.train import main
from randlora_core.experiment.loop.state import whole


def train(overrides):
    """Does a run: the gradients of every step by the place of the parameter, and the entries that it holds here."""
    gradients, held = [], set()

    def collect(optimizer, arguments, options):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append([whole(parameter.grad).clone() for parameter in parameters])
        held.add(sum(getattr(parameter, "_local_tensor", parameter).numel() for parameter in parameters))

    handle = register_optimizer_step_pre_hook(collect)
    try:
        assert main(EXPERIMENT, overrides) == 0
    finally:
        handle.remove()
    return {"gradients": gradients, "held": held}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200, exit=True)  # a deadlock shows where it is
    folder = Path(sys.argv[1])
    torch.save(
        [train(run) for run in json.loads((folder / "runs.json").read_text())], folder / f"{os.environ['RANK']}.pt"
    )
