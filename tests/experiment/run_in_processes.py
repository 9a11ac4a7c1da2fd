"""A whole run that every process of a launch does together: torchrun --nproc-per-node 2 run_in_processes.py FOLDER."""

import sys
from pathlib import Path

from tiny_experiment import make_experiment

from randlora_core.experiment.commands.train import main
from randlora_core.experiment.loop.hardware import is_first_process

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    own = folder / ("first" if is_first_process() else "other")
    settings = ["adapter.rank=2", "training.accumulate=2", "training.learning_rate=0.05", "save.adapter=true"]
    code = main(make_experiment(own), [*settings, "save.state_seconds=0", f"paths.results={folder / 'results'}"])
    (own / "code").write_text(str(code))
