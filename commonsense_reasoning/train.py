"""One run: python -m commonsense_reasoning.train adapter=randlora adapter.rank=6 dataset=mixture paths.data=FOLDER."""

import sys

from commonsense_reasoning.experiment import EXPERIMENT
from randlora_core.experiment.commands.train import main

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
