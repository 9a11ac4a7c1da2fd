"""The score of what a run kept: python -m vision.evaluate run=ID_OR_FOLDER [dataset=NAME]."""

import sys

from randlora_core.experiment.commands.evaluate import main
from vision.experiment import EXPERIMENT

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT))
