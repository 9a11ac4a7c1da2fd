"""Tests of Triton's kernels run without a GPU in Triton's interpreter, which a whole process is in or not."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


def outside_of_it(test):
    """Marks the one test of a file that runs the file's other tests in the interpreter."""
    return needs_triton(pytest.mark.skipif(INTERPRETED, reason="is itself run by this test")(test))


def check_in_interpreter(file: str) -> None:
    """Runs all tests of a file in the interpreter but the one that is `outside_of_it`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout
    assert " passed, 1 skipped in " in result.stdout
