"""The train command on the tiny experiment, as several processes call it: SHARED_SWEEP=FOLDER shared_sweep.py ...

Its runs are noted in `calls`. Files in the folder hold the runs up: each begins only when as many commands have planned
theirs as `together` says, and each slows down after a few steps while there is a file `slow`.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import tiny_experiment
from tiny_experiment import TinyBatches, TinyTask, make_experiment

from randlora_core.experiment.commands.train import main

FOLDER = Path(os.environ["SHARED_SWEEP"])


class SlowBatches(TinyBatches):
    def __getitem__(self, index):
        if index >= 5 and (FOLDER / "slow").exists():
            (FOLDER / f"reached-{self.seed}").touch()
            time.sleep(0.3)
        return super().__getitem__(index)


class SharedTask(TinyTask):
    def __init__(self, config):
        with open(FOLDER / "calls", "a") as calls:
            calls.write(f"{config.seed} {os.getpid()}\n")
        together = FOLDER / "together"
        while together.exists() and len(list(FOLDER.glob("planned-*"))) < int(together.read_text()):
            time.sleep(0.02)
        super().__init__(config)

    def batches(self, count, size):
        return SlowBatches(self.config.rule, count, size, self.config.seed)


def identify_data(config):
    """Called while a command plans its runs."""
    (FOLDER / f"planned-{os.getpid()}").touch()
    return tiny_experiment.identify_data(config)


if __name__ == "__main__":
    experiment = replace(make_experiment(FOLDER), build_task=SharedTask, identify_data=identify_data)
    sys.exit(main(experiment, sys.argv[1:]))
