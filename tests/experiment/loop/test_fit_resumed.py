"""Runs of the loop that are killed, stopped by a signal or at their end, and taken up again from a state."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fit_settings import settings
from fitting import (
    CPU,
    Batches,
    Killed,
    Regression,
    assert_identical,
    kill_at,
    sample_wise,
    weights,
)
from safetensors.torch import load_file

from randlora_core.experiment.loop.fit import Resume, fit


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("killed_after", [1, 4, 6])
def test_a_killed_run_resumes_to_the_bit(tmp_path, killed_after, accumulate, precision):
    plan = settings(accumulate=accumulate, precision=precision, validate_every=2, keep_best=True)
    by_step = {2: 0.5, 4: 0.9, 6: 0.9, 7: 0.7}
    resume = Resume(tmp_path / "run" / "state.safetensors", "run", seconds=0)

    def run(module, resume, on_step=None, done=0):
        scores = iter([score for step, score in by_step.items() if step > done])
        batches = Batches(7 * accumulate)
        return fit(module, batches, plan, CPU, resume=resume, on_step=on_step, validate=lambda: next(scores))

    whole, resumed = Regression(), Regression()
    expected = run(whole, None)
    with pytest.raises(Killed):
        run(Regression(), resume, on_step=kill_at(killed_after + 1))
    torch.rand(17)
    got = run(resumed, resume, done=killed_after)
    assert got.resumed_at == killed_after
    assert got.losses == expected.losses and len(got.losses) == 7
    assert got.validation == expected.validation == list(by_step.items())
    assert got.best_step == expected.best_step == 4
    assert_identical(weights(resumed), weights(whole))


def test_a_training_that_came_to_its_end_is_not_done_again(tmp_path):
    """The last state is kept until the run has its record, so that an evaluation that is killed costs no training."""
    resume = Resume(tmp_path / "state", "run", 0)
    module = Regression()
    whole = fit(module, Batches(4), settings(steps=4), CPU, resume=resume)
    again = Regression()
    result = fit(again, Batches(0), settings(steps=4), CPU, resume=resume)
    assert result.resumed_at == 4 and result.prepare_seconds is None and result.losses == whole.losses
    assert_identical(weights(again), weights(module))
    short = fit(Regression(), Batches(4), settings(steps=4), CPU, resume=Resume(tmp_path / "other", "run", 1e9))
    assert short.losses == whole.losses and not (tmp_path / "other").exists()  # it took less than the time between two


def test_a_state_of_another_run_or_a_damaged_one_is_not_resumed(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        fit(Regression(), Batches(7), settings(), CPU, resume=Resume(path, "a", 0), on_step=kill_at(3))
    assert fit(Regression(), Batches(7), settings(), CPU, resume=Resume(path, "b", 1e9)).resumed_at == 0
    with pytest.raises(ValueError, match=r"state\.safetensors.*another model"):
        fit(Regression(), Batches(9), settings(steps=9), CPU, resume=Resume(path, "a", 1e9))
    other = sample_wise()
    before = weights(other)
    with pytest.raises(ValueError, match=r"state\.safetensors.*another model"):
        fit(other, Batches(7), settings(), CPU, resume=Resume(path, "a", 1e9))
    assert_identical(weights(other), before)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a resumable state"):
        fit(Regression(), Batches(7), settings(), CPU, resume=Resume(path, "a", 1e9))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_keeps_the_state(tmp_path, number):
    resume = Resume(tmp_path / "state.safetensors", "run", seconds=1e9)
    handler = signal.getsignal(number)

    def send(step, loss):
        if step == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt, match="after step 3 of 7"):
        fit(Regression(), Batches(7), settings(), CPU, resume=resume, on_step=send)
    assert signal.getsignal(number) is handler
    module, whole = Regression(), Regression()
    assert fit(module, Batches(7), settings(), CPU, resume=resume).resumed_at == 3
    fit(whole, Batches(7), settings(), CPU)
    assert_identical(weights(module), weights(whole))


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 3), (signal.SIGINT, None)])
def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not(tmp_path, number, step):
    """Clusters send SIGTERM more than once; then the step is done and its state kept all the same."""
    resume = Resume(tmp_path / "state.safetensors", "run", seconds=1e9)

    def send(done, loss):
        if done == 3:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        fit(Regression(), Batches(7), settings(), CPU, resume=resume, on_step=send)
    assert resume.path.exists() == (step is not None)
    assert fit(Regression(), Batches(7), settings(), CPU, resume=resume).resumed_at == (step or 0)


def test_a_state_that_cannot_be_written_is_an_os_error_and_leaves_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from randlora_core.experiment.loop import state

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fit(Regression(), Batches(7), settings(), CPU, resume=Resume(tmp_path / "state.safetensors", "run", 0))
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from fit_settings import settings
from fitting import Batches, CPU, Regression
from safetensors.torch import save_file
from randlora_core.experiment.loop.fit import Resume, fit
folder, fatal_step = Path(sys.argv[1]), int(sys.argv[2])
def kill(step, loss):
    if step == fatal_step:
        os.kill(os.getpid(), signal.SIGKILL)
module = Regression()
result = fit(module, Batches(7), settings(), CPU, resume=Resume(folder / "state.safetensors", "run", 0), on_step=kill)
save_file(module.state_dict(), folder / "weights.safetensors")
(folder / "losses.json").write_text(json.dumps(result.losses))
"""


@pytest.mark.slow
def test_sigkill_in_another_process(tmp_path):
    paths = os.pathsep.join(sys.path)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": paths}
    codes = [
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), step], env=environment).returncode
        for step in ("4", "0")
    ]
    assert codes == [-signal.SIGKILL, 0]
    whole = Regression()
    expected = fit(whole, Batches(7), settings(), CPU)
    assert json.loads((tmp_path / "losses.json").read_text()) == expected.losses
    assert_identical(load_file(tmp_path / "weights.safetensors"), weights(whole))
