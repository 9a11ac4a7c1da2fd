"""The choice of learning rates on validation data: python -m vision.tune [NAME]."""

import sys

from randlora_core.experiment.commands.tune import main
from vision.experiment import EXPERIMENT

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
