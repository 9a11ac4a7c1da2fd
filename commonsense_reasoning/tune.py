"""The choice of learning rates on validation data: python -m commonsense_reasoning.tune [NAME]."""

import sys

from commonsense_reasoning.experiment import EXPERIMENT
from randlora_core.experiment.commands.tune import main

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
