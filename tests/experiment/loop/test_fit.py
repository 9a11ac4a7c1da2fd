"""The loop in one process: what it computes, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from fit_settings import settings
from fitting import (
    CPU,
    PARTS,
    Batches,
    Joined,
    Killed,
    Masks,
    Regression,
    assert_close,
    assert_identical,
    gradients_of_steps,
    kill_at,
    sample_wise,
    trained_whole,
    weights,
)
from torch import nn
from torch.nn import functional as F

from randlora_core.experiment.loop import fit as training
from randlora_core.experiment.loop.fit import Resume, fit
from randlora_core.experiment.loop.optimizer import learning_rate_share


@pytest.mark.parametrize("clip", [0.1, None])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_loop_is_adamw_with_clipping_and_a_schedule(schedule, clip):
    module, oracle = Regression(), Regression()
    module.dropout.p = oracle.dropout.p = 0.0
    plan = settings(steps=5, clip=clip, weight_decay=0.2, schedule=schedule, warmup_steps=2, floor=0.1)
    result = fit(module, Batches(5), plan, CPU)
    optimizer = torch.optim.AdamW([*oracle.norm.parameters(), *oracle.head.parameters()], lr=1.0, weight_decay=0.2)
    losses = []
    for step in range(5):
        share = learning_rate_share(step, schedule=schedule, steps=5, warmup_steps=2, floor=0.1)
        optimizer.param_groups[0]["lr"] = 0.05 * share
        x, y = Batches(5)[step]
        loss = F.mse_loss(oracle.head(oracle.norm(oracle.frozen(x))), y)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(oracle.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert result.losses == pytest.approx(losses, rel=1e-6)
    assert_close(weights(module), weights(oracle), atol=1e-6)  # fused against unfused update


@pytest.mark.parametrize("killed_after", [1, 5])
def test_a_part_has_a_learning_rate_of_its_own_also_in_a_resumed_run(tmp_path, killed_after):
    plan, resume = settings(part_learning_rates=PARTS), Resume(tmp_path / "state.safetensors", "run", seconds=0)
    module, resumed, oracle = trained_whole(), trained_whole(), trained_whole()
    expected = fit(module, Batches(7), plan, CPU)
    with pytest.raises(Killed):
        fit(trained_whole(), Batches(7), plan, CPU, resume=resume, on_step=kill_at(killed_after + 1))
    got = fit(resumed, Batches(7), plan, CPU, resume=resume)
    assert got.resumed_at == killed_after and got.losses == expected.losses
    assert_identical(weights(resumed), weights(module))
    groups = [{"params": oracle.frozen.parameters()}, {"params": oracle.head.parameters()}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    for step in range(7):
        share = learning_rate_share(step, schedule="cosine", steps=7, warmup_steps=0, floor=0.01)
        for group, rate in zip(optimizer.param_groups, (PARTS["frozen"], 0.05), strict=True):
            group["lr"] = rate * share
        loss_sum, num_terms = oracle(*Batches(7)[step])
        (loss_sum / num_terms).backward()
        nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)  # one norm over both parts
        optimizer.step()
        optimizer.zero_grad()
    assert_close(weights(module), weights(oracle), atol=1e-6)  # fused against unfused update


@pytest.mark.parametrize("clip", [0.1, None])
def test_accumulated_micro_batches_of_unequal_weight_are_one_batch(clip):
    """Steps of 3 + 17, 5 + 1 and 9 + 9 terms; the totals differ, since AdamW would not see one factor for all steps."""
    batches = Batches(6, sizes=(3, 17, 5, 1, 9, 9))
    cut, whole = sample_wise(), sample_wise()
    one = fit(cut, batches, settings(steps=3, accumulate=2, clip=clip), CPU)
    other = fit(whole, Joined(batches, 2), settings(steps=3, clip=clip), CPU)
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert_close(weights(cut), weights(whole), atol=1e-6)


def test_the_gradient_of_a_step_is_that_of_the_mean_over_its_terms():
    """Seen where AdamW takes it, since its update does not depend on a constant factor."""
    module, batches = sample_wise(), Batches(2, sizes=(3, 17))
    x, y = Joined(batches, 2)[0]
    expected = torch.autograd.grad(F.mse_loss(module.head(module.frozen(x)), y), module.head.parameters())
    with gradients_of_steps(module.head) as seen:
        fit(module, batches, settings(steps=1, accumulate=2, clip=None), CPU)
    assert len(seen) == 1
    for got, wanted in zip(seen[0], expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-7)


def test_the_number_of_terms_may_be_a_tensor():
    class Counting(Regression):
        def forward(self, x, y):
            loss_sum, num_terms = super().forward(x, y)
            return loss_sum, torch.tensor(num_terms)

    counting, module = Counting(), Regression()
    assert fit(counting, Batches(7), settings(), CPU).losses == fit(module, Batches(7), settings(), CPU).losses
    assert_identical(weights(counting), weights(module))


def test_a_step_without_terms_is_an_error_that_names_it():
    batches = Batches(14, sizes=(4, 4, 0, 4, 0, 0, 4))  # micro-batches 4 and 5 make the third step
    module = sample_wise()
    with pytest.raises(ValueError, match="step 3 has no terms"):
        fit(module, batches, settings(accumulate=2), CPU)


def test_the_seed_decides_dropout_and_nothing_is_left_to_chance():
    losses = []
    for seed in (3, 3, 4):
        torch.rand(5)
        losses.append(fit(Regression(), Batches(7), settings(seed=seed), CPU).losses)
    assert losses[0] == losses[1] != losses[2]


def test_no_two_dropout_masks_are_the_same_and_a_resumed_run_has_those_of_a_whole_one(tmp_path):
    plan, batches = settings(steps=4, accumulate=3), Batches(12)
    whole, resumed = Masks(), Masks()
    fit(whole, batches, plan, CPU)
    masks = torch.stack(whole.masks)
    assert masks.shape == (12, 64) and len(masks.unique(dim=0)) == 12
    resume = Resume(tmp_path / "state.safetensors", "run", seconds=0)
    with pytest.raises(Killed):
        fit(Masks(), batches, plan, CPU, resume=resume, on_step=kill_at(3))
    fit(resumed, batches, plan, CPU, resume=resume)
    assert torch.equal(torch.stack(resumed.masks), masks[6:])


def test_frozen_weights_stay_as_they_are():
    module = Regression()
    before = weights(module.frozen)
    fit(module, Batches(7), settings(), CPU)
    assert_identical(weights(module.frozen), before)
    assert not torch.equal(module.head.weight, Regression().head.weight)


def test_validation_comes_every_so_many_steps_and_at_the_end():
    module, scores, done = Regression(), iter([0.5, 0.25, 0.75]), []
    result = fit(
        module,
        Batches(7),
        settings(validate_every=3),
        CPU,
        on_step=lambda step, loss: done.append(step),
        validate=lambda: done.append("validated") or next(scores),
    )
    assert result.validation == [(3, 0.5), (6, 0.25), (7, 0.75)]
    assert done == [1, 2, 3, "validated", 4, 5, 6, "validated", 7, "validated"]
    last = Regression()
    fit(last, Batches(7), settings(), CPU)
    assert result.best_step is None
    assert_identical(weights(module), weights(last))


@pytest.mark.parametrize(
    ("scores", "best"), [((0.1, 0.9, 0.9, 0.3), 4), ((0.9, 0.1, 0.2, 0.3), 2), ((-3.0, -2.0, -2.0, -1.0), 7)]
)
def test_the_weights_of_the_best_validation_are_kept_and_of_equals_the_earlier(scores, best):
    module, seen, given = Regression(), [], iter(scores)

    def validate():
        module.eval()
        seen.append(weights(module))
        return next(given)

    result = fit(module, Batches(7), settings(validate_every=2, keep_best=True), CPU, validate=validate)
    assert result.best_step == best and len(result.losses) == 7
    assert_identical(weights(module), seen[(2, 4, 6, 7).index(best)])
    assert not torch.equal(seen[0]["head.weight"], seen[1]["head.weight"])
    assert not torch.equal(seen[0]["norm.running_mean"], seen[1]["norm.running_mean"])


def test_the_best_weights_cannot_be_kept_without_a_validation():
    with pytest.raises(ValueError, match="keep_best=True needs a validation"):
        fit(Regression(), Batches(7), settings(keep_best=True, validate_every=2), CPU)
    with pytest.raises(ValueError, match="keep_best=True needs a validation"):
        fit(Regression(), Batches(7), settings(keep_best=True), CPU, validate=lambda: 1.0)


def test_seconds_leave_out_validation_and_say_how_long_the_loop_waited(monkeypatch, tmp_path):
    now = [0.0]

    def takes(seconds, value):
        now[0] += seconds
        return value

    class Slow(Batches):
        def __getitem__(self, index):
            return takes(10, super().__getitem__(index))

    class Module(Regression):
        def forward(self, x, y):
            return takes(1, super().forward(x, y))

    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    plan, resume = settings(steps=4, accumulate=2, validate_every=2), Resume(tmp_path / "state", "run", 0)
    arguments = {"resume": resume, "validate": lambda: takes(1000, 0.5)}
    with pytest.raises(Killed):
        fit(Module(), Slow(8), plan, CPU, **arguments, on_step=kill_at(4))
    resumed = fit(Module(), Slow(8), plan, CPU, **arguments)  # from the state that was written after step 3
    assert resumed.resumed_at == 3
    assert 8 * 10 <= resumed.waited_seconds < 10 * 10  # the loader had fetched a micro-batch ahead
    assert resumed.seconds == resumed.waited_seconds + 8 * 1
    assert resumed.prepare_seconds == 10
    (tmp_path / "state").unlink()
    result = fit(Module(), Slow(8), plan, CPU, **arguments)
    assert result.waited_seconds == 8 * 10 and result.seconds == 8 * 10 + 8 * 1 and result.prepare_seconds == 10


def test_a_diverging_run_says_where():
    class Diverging(Regression):
        def forward(self, x, y):
            loss_sum, num_terms = super().forward(x, y)
            return loss_sum * (float("nan") if x[0, 0] == Batches(7)[2][0][0, 0] else 1), num_terms

    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 3 with learning rate 0\.05"):
        fit(Diverging(), Batches(7), settings(), CPU)


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("report_steps", [1, 4])
def test_a_gradient_that_is_not_finite_is_an_error_though_the_loss_is(monkeypatch, report_steps, clip, tmp_path):
    monkeypatch.setitem(training.REPORT_STEPS, "cpu", report_steps)
    module, backwards = Regression(), iter(range(7))
    module.head.weight.register_hook(lambda gradient: gradient * (float("inf") if next(backwards) == 1 else 1))
    resume = Resume(tmp_path / "state.safetensors", "run", 0)
    with pytest.raises(FloatingPointError, match=r"norm of the gradient is (inf|nan) at step 2 with learning rate"):
        fit(module, Batches(7), settings(clip=clip), CPU, resume=resume)
    assert fit(Regression(), Batches(7), settings(clip=clip), CPU, resume=resume).resumed_at == 1


def test_compute_is_autocast_and_leaves_the_choice_of_attention_to_torch():
    layer, query = nn.Linear(16, 16), torch.randn(2, 3, 36, 16, requires_grad=True)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with training.compute(CPU, precision):
            output = layer(query)
            attended = F.scaled_dot_product_attention(output, output, output)
        assert output.dtype == attended.dtype == dtype
        assert "FlashAttention" in attended.grad_fn.name()


def test_worker_processes_give_the_same_run():
    alone, helped = Regression(), Regression()
    plan = settings(accumulate=2)
    losses = fit(alone, Batches(14), plan, CPU).losses
    assert fit(helped, Batches(14), replace(plan, workers=2), CPU).losses == losses
    assert_identical(weights(helped), weights(alone))


@pytest.mark.parametrize("mark", ["hf_device_map", "is_loaded_in_8bit", "is_loaded_in_4bit", None])
def test_a_model_that_is_already_placed_is_not_moved(mark):
    moves = []

    class Moving(Regression):
        def _apply(self, function, recurse=True):
            moves.append(function)
            return super()._apply(function, recurse)

    module = Moving()
    if mark is not None:
        setattr(module.head, mark, {"": 0} if mark == "hf_device_map" else True)
    result = fit(module, Batches(7), settings(), CPU)
    assert len(result.losses) == 7
    assert bool(moves) == (mark is None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without the device that is asked for")
def test_a_device_that_accelerate_does_not_use_is_refused():
    with pytest.raises(ValueError, match="device cuda cannot be used: Accelerate runs on cpu"):
        fit(Regression(), Batches(7), settings(), torch.device("cuda"))
