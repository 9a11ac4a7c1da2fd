"""The loop in two processes of this machine, which talk through gloo, against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fit_in_processes import SIZES
from fit_settings import settings
from fitting import (
    CPU,
    PARTS,
    Batches,
    Masks,
    assert_close,
    assert_identical,
    gradients_of_steps,
    sample_wise,
    trained_whole,
    weights,
)

from randlora_core.experiment.loop.fit import fit


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of the two processes got, see `fit_in_processes.run`."""
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("fit_in_processes.py")
    done = subprocess.run(
        [*launch, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def alone(**changes):
    """Losses, weights and the last step's gradients of the same fit in this one process."""
    module = trained_whole() if "part_learning_rates" in changes else sample_wise()
    plan = settings(**changes)
    with gradients_of_steps(module.head) as gradients:
        losses = fit(module, Batches(plan.steps * plan.accumulate, SIZES), plan, CPU).losses
    return losses, weights(module), gradients[-1]


CASES = {
    "plain": {"accumulate": 2},
    "free": {"accumulate": 2, "clip": None},
    "clipped": {"accumulate": 4, "clip": 0.1},
    "resumed": {"accumulate": 2},
    "parts": {"accumulate": 2, "part_learning_rates": PARTS},
    "sharded": {"accumulate": 4, "clip": 0.1},
    "split": {},
    "split_3": {"accumulate": 3, "clip": 0.1},
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(processes, case):
    """Rounding alone differs; micro-batches have 1 to 17 terms, so that neither process has half of them."""
    losses, expected, gradients = alone(**CASES[case])
    first, second = (got[case] for got in processes)
    assert first["losses"] == second["losses"] == pytest.approx(losses, rel=1e-5) and len(losses) == 7
    assert_identical(first["weights"], second["weights"])
    assert_close(first["weights"], expected, atol=1e-6)
    for got, wanted in zip(first["gradients"][-1], gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["resumed", "parts", "sharded", "split_3"])
def test_a_signal_to_one_process_stops_both_and_the_state_resumes_in_both(processes, case):
    for got in processes:
        assert got[case]["stop"] == "stopped after step 3 of 7"
        assert got[case]["resumed_at"] == 3


def test_dropout_masks_are_those_of_one_process_and_no_two_are_the_same(processes):
    module, plan = Masks(), settings(accumulate=4)
    fit(module, Batches(28, SIZES), plan, CPU)
    dealt_out = torch.stack(module.masks).view(14, 2, 64)
    for rank, got in enumerate(processes):
        assert torch.equal(got["masks"], dealt_out[:, rank])
    assert len(dealt_out.flatten(0, 1).unique(dim=0)) == 28


def test_processes_that_share_micro_batches_draw_masks_of_their_own(processes):
    first, second = (got["split_masks"] for got in processes)
    assert len(first) == len(second) == 21 and len(torch.cat([first, second]).unique(dim=0)) == 42


def test_a_state_that_is_due_at_a_step_is_kept_there_whenever_losses_are_read(processes):
    assert [got["kept"] for got in processes] == [["step-3", "step-6"]] * 2


def test_both_processes_keep_the_same_best_weights_though_their_scores_differ(processes):
    first, second = (got["best"] for got in processes)
    assert first["best_step"] == second["best_step"] == 6  # the first process's scores are 0.1, 0.9, 0.2
    assert_identical(first["weights"], second["weights"])
    last = processes[0]["plain"]["weights"]
    assert not torch.equal(first["weights"]["head.weight"], last["head.weight"])


def test_gradients_are_averaged_after_the_last_micro_batch_of_a_step_only(processes):
    assert [got["unsynchronised"] for got in processes] == [7 * 2, 7 * 2]  # 3 micro-batches a step in each process


def test_micro_batches_that_cannot_be_dealt_out_evenly_are_refused(processes):
    for got in processes:
        assert "accumulate=3 micro-batches per step cannot be dealt out to 2 processes" in got["uneven"]
