"""Contrastive training whose micro-batches all processes of a launch share; each writes what it got to FOLDER/RANK.pt.

torchrun --nproc-per-node 2 contrastive_in_processes.py FOLDER
"""

import faulthandler
import os
import sys
from pathlib import Path

import torch
from tiny_clip import train

if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)  # a deadlock shows where it is
    got = {(every, accumulate): train(every, accumulate) for every in (False, True) for accumulate in (1, 3)}
    torch.save(got, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
