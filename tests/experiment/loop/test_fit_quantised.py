"""Adapters on 4- and 8-bit layers train through the loop: the loss falls, the weight stays, a killed run resumes."""

import pytest
import torch
from fit_settings import settings
from fitting import CPU, Killed, kill_at
from torch import nn
from torch.utils.data import Dataset

from randlora_core import adapter_parameters, inject_adapter, make_config
from randlora_core.experiment.loop.fit import Resume, fit
from randlora_core.experiment.loop.state import copy_trained

bnb = pytest.importorskip("bitsandbytes")


class Batches(Dataset):
    """Inputs with a linear target."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
        return x, x[:, :8] - x[:, 8:16]


class Objective(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.layer = bnb.nn.Linear8bitLt(32, 8, has_fp16_weights=False) if kind == "int8" else bnb.nn.Linear4bit(32, 8)
        self.to("cpu")
        inject_adapter(self, make_config("randlora", rank=1), ["layer"])

    def forward(self, x, y):
        errors = nn.functional.mse_loss(self.layer(x).float(), y, reduction="none")
        return errors.mean(1).sum(), len(x)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_layers_train_and_resume_to_the_bit(kind, tmp_path):
    plan = settings(steps=30)
    whole = Objective(kind)
    packed = whole.layer.base.weight.detach().clone()
    losses = fit(whole, Batches(), plan, CPU).losses
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(whole.layer.base.weight, packed)
    assert set(copy_trained(whole)) == {f"layer.updates.default.randlora_{name}" for name in ("lambda", "gamma")}

    resume = Resume(tmp_path / "state.safetensors", "key", 0.0)
    with pytest.raises(Killed):
        fit(Objective(kind), Batches(), plan, CPU, resume=resume, on_step=kill_at(11))
    resumed = Objective(kind)
    assert fit(resumed, Batches(), plan, CPU, resume=resume).losses == losses
    for ours, theirs in zip(adapter_parameters(resumed), adapter_parameters(whole), strict=True):
        assert torch.equal(ours, theirs) and ours.abs().sum() > 0
