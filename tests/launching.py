"""Starts a script of the tests in two processes, which talk through gloo, as `accelerate launch` does on GPUs."""

import os
import subprocess
import sys


def launch(script, *arguments, **environment):
    """What two processes of a script print, both of which have to succeed; the environment is changed as told."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
