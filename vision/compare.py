"""A comparison of methods: python -m vision.compare [NAME]."""

import sys

from randlora_core.experiment.commands.compare import main
from vision.experiment import EXPERIMENT

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
