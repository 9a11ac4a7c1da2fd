"""A comparison of methods: python -m commonsense_reasoning.compare [NAME]."""

import sys

from commonsense_reasoning.experiment import EXPERIMENT
from randlora_core.experiment.commands.compare import main

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
