"""The loop in two processes of this machine, which talk through gloo, against one."""

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
from launching import launch

from randlora_core.experiment.loop.distributed import is_sharded, shard
from randlora_core.experiment.loop.fit import fit


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of the two processes got, see `fit_in_processes.run`."""
    folder = tmp_path_factory.mktemp("processes")
    launch(Path(__file__).with_name("fit_in_processes.py"), folder)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version=1; accepted: 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing=True; accepted: False"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading=True; accepted: False"),
        (
            {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Linea"},
            "fsdp_transformer_layer_cls_to_wrap=Linea; accepted: among Regress",
        ),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, "fsdp_reshard_after_forward=False; accepted: True"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params=True; accepted: False"),
        (
            {"FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear,Linea"},
            "fsdp_transformer_layer_cls_to_wrap=Linear,Linea; accepted: among Regress",
        ),
        ({"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, "fsdp_transformer_layer_cls_to_wrap=; accepted: among Regression"),
    ],
)
def test_what_of_accelerates_settings_is_not_supported_is_refused(monkeypatch, changes, message):
    given = {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "ACCELERATE_USE_FSDP": "true"}
    for key, value in {**given, "FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear", **changes}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=message):
        shard(sample_wise(), CPU)


def test_nothing_is_sharded_where_accelerate_does_not_say_so(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    module = sample_wise()
    shard(module, CPU)
    assert not is_sharded(module) and type(module).__name__ == "Regression"
