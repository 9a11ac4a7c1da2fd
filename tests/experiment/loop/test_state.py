"""States of interrupted runs, as a file."""

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from randlora_core.experiment.loop.state import Progress, load_state, save_state


def test_a_frozen_tensor_in_a_state_of_earlier_code_is_passed_over(tmp_path):
    """Such states hold the output layer of a model whose embedding is trained or tied to it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[0].parameters())
    path, losses = tmp_path / "state.safetensors", torch.arange(5.0)
    expected = model[0].weight.detach().clone()
    save_state(path, model, optimizer, losses, {}, Progress("run", 2, 0.0, 0.0, (), None))
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**tensors, "model/1.weight": torch.ones(2, 4)}, path, metadata=metadata)
    frozen = model[1].weight.clone()
    with torch.no_grad():
        model[0].weight.zero_()
    losses.zero_()
    progress, best = load_state(path, model, optimizer, losses, "run")
    assert progress.step == 2 and not best and torch.equal(losses, torch.arange(5.0))
    assert torch.equal(model[0].weight, expected) and torch.equal(model[1].weight, frozen)
