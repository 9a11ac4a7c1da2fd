"""Starts a script of the tests in two processes, which talk through gloo, as `accelerate launch` does on GPUs."""

import os
import subprocess
import sys


class ProcessCrashed(AssertionError):
    """A process of a launch ended by SIGSEGV: in native code, such as torch's, and not by an error of Python."""


def launch(script, *arguments, **environment):
    """What two processes of a script print, both of which have to succeed; the environment is changed as told.

    Raises:
        ProcessCrashed: A process ended by SIGSEGV; the message has the stacks of its threads.
        AssertionError: A process failed otherwise.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONFAULTHANDLER": "1"}
    own["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "Signal 11 (SIGSEGV)" in done.stderr:
        raise ProcessCrashed(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
