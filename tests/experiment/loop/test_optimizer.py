import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from randlora_core.experiment.loop.optimizer import learning_rate_share, make_optimizer, set_learning_rate_share


def shares(schedule, steps, warmup_steps, floor):
    return [
        learning_rate_share(step, schedule=schedule, steps=steps, warmup_steps=warmup_steps, floor=floor)
        for step in range(steps)
    ]


def rates_of(make_scheduler, count):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(count):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_cosine_is_half_a_cosine_to_its_floor():
    got = shares("cosine", 25, 0, 0.01)
    assert got[0] == 1 and got[-1] == pytest.approx(0.01)
    assert got[12] == pytest.approx(0.505)
    assert got[3] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 3 / 24)))
    assert all(a > b for a, b in itertools.pairwise(got))


def test_the_linear_schedule_is_a_line_to_its_floor():
    assert shares("linear", 5, 0, 0.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert shares("linear", 5, 0, 0.2) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_the_warm_up_rises_from_above_0_to_the_peak_where_the_decay_starts():
    assert shares("linear", 8, 4, 0.0) == pytest.approx([0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])
    cosine = shares("cosine", 8, 4, 0.1)
    assert cosine[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert cosine[4:] == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * part / 4)) for part in (1, 2, 3, 4)])


def test_short_runs():
    assert shares("cosine", 1, 0, 0.01) == shares("linear", 1, 0, 0.0) == shares("linear", 1, 1, 0.0) == [1]
    assert shares("linear", 3, 3, 0.0) == pytest.approx([1 / 3, 2 / 3, 1])
    assert shares("linear", 4, 1, 0.0) == shares("linear", 4, 0, 0.0)


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.3])
def test_without_warm_up_they_are_torchs_schedules(floor):
    cosine = rates_of(lambda optimizer: CosineAnnealingLR(optimizer, T_max=24, eta_min=floor), 25)
    assert shares("cosine", 25, 0, floor) == pytest.approx(cosine)
    linear = rates_of(lambda optimizer: LinearLR(optimizer, 1.0, floor, total_iters=24), 25)
    assert shares("linear", 25, 0, floor) == pytest.approx(linear)


def test_with_warm_up_they_are_the_schedules_of_transformers_one_step_on():
    """Theirs start at 0, which trains nothing, and would reach the floor only after the last step."""
    transformers = pytest.importorskip("transformers")
    linear = rates_of(lambda optimizer: transformers.get_linear_schedule_with_warmup(optimizer, 6, 30), 31)
    assert shares("linear", 30, 6, 0.0) == pytest.approx(linear[1:])
    cosine = rates_of(
        lambda optimizer: transformers.get_cosine_with_min_lr_schedule_with_warmup(optimizer, 6, 30, min_lr_rate=0.01),
        31,
    )
    assert shares("cosine", 30, 6, 0.01) == pytest.approx(cosine[1:])


def test_unknown_schedules_and_warm_ups_longer_than_the_run_are_refused():
    with pytest.raises(ValueError, match="unknown schedule 'step'; known: cosine, linear"):
        shares("step", 3, 0, 0.0)
    with pytest.raises(ValueError, match="warmup_steps=4 is not between 0 and the run's 3 steps"):
        shares("linear", 3, 4, 0.0)


def test_one_update_is_adamw_by_hand():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    module = nn.ParameterDict({"trained": parameter, "frozen": frozen})
    optimizer = make_optimizer(module, learning_rate=0.1, weight_decay=0.1)
    set_learning_rate_share(optimizer, 0.1)
    parameter.grad = torch.tensor([0.5, -0.25, 0.0])
    before = parameter.detach().clone()
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * torch.sign(parameter.grad)
    assert torch.allclose(parameter, expected, atol=1e-6)
    assert torch.equal(frozen, torch.ones(3))


def test_an_update_is_one_fused_kernel():
    optimizer = make_optimizer(
        two_parts(), learning_rate=1.0, weight_decay=0.0, part_learning_rates={"head": 0.1, "body.out": 0.2}
    )
    assert len(optimizer.param_groups) == 3
    assert all(group["fused"] for group in optimizer.param_groups)


def two_parts():
    """A body of two layers, a head, and a layer whose name only begins like the head's."""
    body = nn.Sequential()
    body.add_module("in", nn.Linear(4, 4))
    body.add_module("out", nn.Linear(4, 4))
    return nn.ModuleDict({"head": nn.Linear(4, 2), "body": body, "header": nn.Linear(4, 2)})


def test_a_part_with_a_learning_rate_of_its_own_follows_the_same_schedule():
    module = two_parts()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    rates = {"head": 0.02, "body.out": 0.5}
    optimizer = make_optimizer(module, learning_rate=0.1, weight_decay=0.1, part_learning_rates=rates)
    expected = {"head": 0.02, "body.in": 0.1, "body.out": 0.5, "header": 0.1}
    for share in (1.0, 0.25):
        for value in module.parameters():
            value.grad = torch.ones_like(value)
        set_learning_rate_share(optimizer, share)
        optimizer.step()
        for name, value in module.named_parameters():
            rate = share * expected[name.rpartition(".")[0]]
            before[name] = before[name] * (1 - rate * 0.1) - rate  # Adam's step is 1 while the gradient is constant
            assert torch.allclose(value, before[name], atol=1e-6), name


def test_a_part_without_trained_parameters_cannot_have_a_learning_rate():
    module = two_parts()
    module["head"].requires_grad_(False)
    for part in ("head", "tail", "bod"):
        with pytest.raises(ValueError, match=f"'{part}' has a learning rate of its own, but the module trains no"):
            make_optimizer(module, learning_rate=1.0, weight_decay=0.0, part_learning_rates={part: 0.1})


def test_a_module_of_which_only_parts_with_rates_of_their_own_are_trained():
    module = two_parts().requires_grad_(False)
    module["head"].requires_grad_(True)
    optimizer = make_optimizer(module, learning_rate=1.0, weight_decay=0.0, part_learning_rates={"head": 0.1})
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.1 and {id(value) for value in group["params"]} == set(map(id, module["head"].parameters()))


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter is trainable"):
        make_optimizer(two_parts().requires_grad_(False), learning_rate=1.0, weight_decay=0.0)
