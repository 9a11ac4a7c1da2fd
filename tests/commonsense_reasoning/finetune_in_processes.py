"""The fine-tuning command as every process of a launch runs it: torchrun ... finetune_in_processes.py [OPTION ...]."""

import sys

from commonsense_reasoning.finetune import main

if __name__ == "__main__":
    sys.exit(main())
