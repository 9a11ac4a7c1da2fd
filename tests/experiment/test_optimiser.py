import itertools
import math

import pytest
import torch
from torch import nn

from randlora_core.experiment.optimiser import cosine, make_optimiser, set_learning_rate


def test_the_schedule_is_half_a_cosine_to_one_percent():
    shares = [cosine(step, 25) for step in range(25)]
    assert shares[0] == 1 and shares[-1] == pytest.approx(0.01)
    assert shares[12] == pytest.approx(0.505)
    assert shares[3] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 3 / 24)))
    assert all(a > b for a, b in itertools.pairwise(shares))
    assert cosine(0, 1) == 1


def test_one_update_is_adamw_by_hand():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    optimiser = make_optimiser([parameter, frozen], learning_rate=1.0, weight_decay=0.1)
    set_learning_rate(optimiser, 0.01)
    parameter.grad = torch.tensor([0.5, -0.25, 0.0])
    before = parameter.detach().clone()
    optimiser.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * torch.sign(parameter.grad)
    assert torch.allclose(parameter, expected, atol=1e-6)
    assert torch.equal(frozen, torch.ones(3))


def test_an_update_is_one_fused_kernel():
    optimiser = make_optimiser([nn.Parameter(torch.ones(3))], learning_rate=1.0, weight_decay=0.0)
    assert all(group["fused"] for group in optimiser.param_groups)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter is trainable"):
        make_optimiser([nn.Parameter(torch.ones(1), requires_grad=False)], learning_rate=1.0, weight_decay=0.0)
