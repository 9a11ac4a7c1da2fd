"""One run: python -m vision.train adapter=randlora adapter.rank=6 dataset=digits shots=4 seed=1."""

import sys

from randlora_core.experiment.commands.train import main
from vision.experiment import EXPERIMENT

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
