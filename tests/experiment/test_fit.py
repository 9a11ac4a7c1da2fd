import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from randlora_core.experiment.optimiser import cosine
from randlora_core.experiment.training import FitSettings, Resume, fit

CPU = torch.device("cpu")


class Regression(nn.Module):
    """A frozen layer, dropout, a batch norm with running statistics and a trained layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 3)

    def forward(self, x, y):
        return nn.functional.mse_loss(self.head(self.dropout(self.norm(self.frozen(x)))).float(), y)


class Batches(Dataset):
    def __init__(self, count, size=8):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        return torch.randn(self.size, 6, generator=draw), torch.randn(self.size, 3, generator=draw)


class Killed(BaseException):
    pass


def settings(**changes):
    return FitSettings(**{"steps": 7, "learning_rate": 0.05, "precision": "fp32", "seed": 3, **changes})


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_identical(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("killed_after", [1, 4, 6])
def test_a_killed_run_resumes_to_the_bit(tmp_path, killed_after, accumulate, precision):
    plan = settings(accumulate=accumulate, precision=precision, evaluate_every=2)
    whole = Regression()
    scores = iter(range(100))
    expected = fit(whole, Batches(7 * accumulate), plan, CPU, evaluate=lambda: float(next(scores)))
    resume = Resume(tmp_path / "run" / "state.safetensors", "run", seconds=0)

    def kill(step, loss):
        if step == killed_after + 1:
            raise Killed

    scores = iter(range(100))
    with pytest.raises(Killed):
        batches = Batches(7 * accumulate)
        fit(Regression(), batches, plan, CPU, resume=resume, on_step=kill, evaluate=lambda: float(next(scores)))
    torch.rand(17)
    resumed = Regression()
    scores = iter(range(killed_after // 2, 100))
    got = fit(resumed, Batches(7 * accumulate), plan, CPU, resume=resume, evaluate=lambda: float(next(scores)))
    assert got.resumed_at == killed_after
    assert got.losses == expected.losses and len(got.losses) == 7
    assert got.validation == expected.validation
    assert_identical(weights(resumed), weights(whole))


def test_the_loop_is_adamw_with_clipping_and_a_cosine():
    model, oracle = Regression(), Regression()
    model.dropout.p = oracle.dropout.p = 0.0
    result = fit(model, Batches(5), settings(steps=5, clip=0.1, weight_decay=0.2), CPU)
    optimiser = torch.optim.AdamW([*oracle.norm.parameters(), *oracle.head.parameters()], lr=1.0, weight_decay=0.2)
    losses = []
    for step in range(5):
        optimiser.param_groups[0]["lr"] = 0.05 * cosine(step, 5)
        loss = oracle(*Batches(5)[step])
        loss.backward()
        nn.utils.clip_grad_norm_(oracle.parameters(), 0.1)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert result.losses == pytest.approx(losses, rel=1e-6)
    for name, tensor in oracle.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor, atol=1e-6), name  # fused against unfused update


def test_accumulated_micro_batches_are_one_batch():
    class Joined(Batches):
        def __getitem__(self, index):
            halves = [super(Joined, self).__getitem__(2 * index + half) for half in (0, 1)]
            return tuple(torch.cat(parts) for parts in zip(*halves, strict=True))

    split, whole = Regression().eval(), Regression().eval()
    for model in (split, whole):
        model.dropout.p, model.norm = 0.0, nn.Identity()
    one = fit(split, Batches(8), settings(steps=4, accumulate=2), CPU)
    other = fit(whole, Joined(4), settings(steps=4), CPU)
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(split.state_dict()[name], tensor, atol=1e-5), name


def test_the_seed_decides_dropout_and_nothing_is_left_to_chance():
    losses = []
    for seed in (3, 3, 4):
        torch.rand(5)
        losses.append(fit(Regression(), Batches(7), settings(seed=seed), CPU).losses)
    assert losses[0] == losses[1] != losses[2]


def test_frozen_weights_stay_as_they_are():
    model = Regression()
    before = weights(model.frozen)
    fit(model, Batches(7), settings(), CPU)
    assert_identical(weights(model.frozen), before)
    assert not torch.equal(model.head.weight, Regression().head.weight)


def test_a_state_of_another_run_or_a_damaged_one_is_not_resumed(tmp_path):
    path = tmp_path / "state.safetensors"

    def interrupted(step, loss):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        fit(Regression(), Batches(7), settings(), CPU, resume=Resume(path, "a", 0), on_step=interrupted)
    assert fit(Regression(), Batches(7), settings(), CPU, resume=Resume(path, "b", 1e9)).resumed_at == 0
    with pytest.raises(ValueError, match=r"state\.safetensors.*another model"):
        fit(Regression(), Batches(9), settings(steps=9), CPU, resume=Resume(path, "a", 1e9))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a resumable state"):
        fit(Regression(), Batches(7), settings(), CPU, resume=Resume(path, "a", 1e9))


def test_a_diverging_run_says_where(tmp_path):
    class Diverging(Regression):
        def forward(self, x, y):
            return super().forward(x, y) * (float("nan") if x[0, 0] == Batches(7)[2][0][0, 0] else 1)

    with pytest.raises(FloatingPointError, match=r"nan at step 3 with learning rate 0\.05"):
        fit(Diverging(), Batches(7), settings(), CPU)


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
    model, whole = Regression(), Regression()
    assert fit(model, Batches(7), settings(), CPU, resume=resume).resumed_at == 3
    fit(whole, Batches(7), settings(), CPU)
    assert_identical(weights(model), weights(whole))


def test_a_state_that_cannot_be_written_is_an_os_error_and_leaves_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from randlora_core.experiment import state

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fit(Regression(), Batches(7), settings(), CPU, resume=Resume(tmp_path / "state.safetensors", "run", 0))
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import json, os, signal, sys
sys.path.insert(0, {here!r})
import torch
from safetensors.torch import save_file
from test_fit import Batches, CPU, Regression, settings
from randlora_core.experiment.training import Resume, fit
from pathlib import Path
folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
def kill(step, loss):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
model = Regression()
result = fit(model, Batches(7), settings(), CPU, resume=Resume(folder / "state.safetensors", "run", 0), on_step=kill)
save_file(model.state_dict(), folder / "weights.safetensors")
(folder / "losses.json").write_text(json.dumps(result.losses))
"""


@pytest.mark.slow
def test_sigkill_in_another_process(tmp_path):
    script = SCRIPT.format(here=str(Path(__file__).parent))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    codes = [
        subprocess.run([sys.executable, "-c", script, str(tmp_path), kill_at], env=environment).returncode
        for kill_at in ("4", "0")
    ]
    assert codes == [-signal.SIGKILL, 0]
    whole = Regression()
    expected = fit(whole, Batches(7), settings(), CPU)
    assert json.loads((tmp_path / "losses.json").read_text()) == expected.losses
    assert_identical(load_file(tmp_path / "weights.safetensors"), weights(whole))
