"""The score of what a run kept: python -m commonsense_reasoning.evaluate run=ID_OR_FOLDER [protocol=options]."""

import sys

from commonsense_reasoning.experiment import EXPERIMENT
from randlora_core.experiment.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
