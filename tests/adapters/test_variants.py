"""The variants that the paper studies beside RandLoRA: RandLoRA-a, RandLoRA-b and the authors' NoLA."""

import pytest
import torch
from torch import nn

from randlora_core import (
    LoRAConfig,
    NoLAConfig,
    RandLoRAConfig,
    count_parameters,
    inject_adapter,
    load_adapter,
    save_adapter,
)
from randlora_core.adapters.lora import lora_plus_groups
from randlora_core.adapters.state import adapter_bases

RANDLORA_A = RandLoRAConfig(rank=32, num_bases=124, distinct_a=True)
RANDLORA_B = RandLoRAConfig(rank=3, num_bases=128)


def wide(out_features: int = 768, in_features: int = 768) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, out_features, bias=False, dtype=torch.float64))


def perturbed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model[0].update.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.mark.parametrize(
    ("config", "parameters", "rank"), [(RANDLORA_A, 99_200, 32), (RANDLORA_B, 98_688, 384)], ids=["a", "b"]
)
def test_sizes_and_ranks_of_the_papers_rank_ablation(config, parameters, rank):
    """Section 6.3: as many parameters as RandLoRA-6 (99,072) within half a percent, at rank 32 and 384 of 768."""
    model = inject_adapter(wide(), config, ("0",))
    assert count_parameters(model).trainable == parameters
    delta = perturbed(model)[0].update.delta_weight().detach()
    values = torch.linalg.svdvals(delta)
    # float64: the first `rank` singular values are far above the noise and the rest are noise.
    assert values[rank - 1] > 1e-6 * values[0]
    assert values[rank] < 1e-12 * values[0]


@pytest.mark.parametrize("distinct_a", [False, True])
def test_the_number_of_bases_may_depend_on_the_width(distinct_a):
    """Every layer is as with the number of its smaller side alone, on bases that have the same entries."""
    layers = {"wide": (17, 11), "narrow": (5, 9)}

    def build(num_bases):
        model = nn.ModuleDict({name: nn.Linear(*shape[::-1]) for name, shape in layers.items()}).double()
        config = RandLoRAConfig(rank=2, num_bases=num_bases, distinct_a=distinct_a, init="gamma_zero")
        return inject_adapter(model, config, tuple(layers))

    by_width = build({"11": 4, 5: 2})  # a file has made text of a key
    assert by_width["wide"].update.randlora_gamma.shape == (4, 11)
    assert by_width["narrow"].update.randlora_gamma.shape == (2, 5)
    assert count_parameters(by_width).trainable == 4 * (2 + 11) + 2 * (2 + 5)
    slices = [layer.update.basis_slices()[1] for layer in by_width.values()]
    assert [tuple(part.shape) for part in slices] == [(17, 4, 2), (9, 2, 2)]
    assert torch.equal(slices[1], slices[0][:9, :2])
    with pytest.raises(ValueError, match=r"num_bases has no number for smaller side 5 of \(5, 9\); known: 11"):
        build({11: 4})
    with pytest.raises(ValueError, match=r"num_bases\[11\] must be an integer of at least 1, got 0"):
        build({11: 0})


def test_a_number_of_bases_for_each_width_is_kept_with_the_adapter(tmp_path):
    model = nn.Sequential(nn.Linear(11, 17), nn.Linear(17, 5))
    inject_adapter(model, RandLoRAConfig(rank=2, num_bases={11: 4, 5: 2}), ("0", "1"))
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_adapter(model, tmp_path)
    again = nn.Sequential(nn.Linear(11, 17), nn.Linear(17, 5))
    load_adapter(again, tmp_path)
    for index in (0, 1):
        assert torch.equal(again[index].update.delta_weight(), model[index].update.delta_weight())


@pytest.mark.parametrize("shape", [(17, 11), (11, 17)])
def test_randlora_a_is_the_product_of_two_sums(shape):
    config = RandLoRAConfig(rank=4, num_bases=5, distinct_a=True, scale_by_sqrt_bases=True, basis="sparse", alpha=3)
    model = perturbed(inject_adapter(wide(*shape), config, ("0",)))
    update = model[0].update
    (bases,) = adapter_bases(model).values()
    assert bases.A.shape == (5, 4, 11) and bases.B.shape == (17, 5, 4)
    b = sum(bases.B[:, j].double() @ update.randlora_lambda[:, j].diag() for j in range(5))
    a = sum(bases.A[j].double() @ update.randlora_gamma[j].diag() for j in range(5))
    expected = 3 / 4 / 5**0.5 * bases.units["A"] * bases.units["B"] * (b @ a)
    expected = expected if shape[0] > shape[1] else expected.T
    torch.testing.assert_close(update.delta_weight(), expected)
    assert update.num_parameters(config, shape) == sum(p.numel() for p in update.parameters()) == 5 * (4 + 11)


@pytest.mark.parametrize("init", ["lambda_zero", "gamma_zero"])
def test_randlora_a_starts_at_the_base_model_and_moves_one_vector_first(init):
    model = inject_adapter(wide(17, 11), RandLoRAConfig(rank=4, num_bases=5, distinct_a=True, init=init), ("0",))
    update = model[0].update
    assert not update.delta_weight().any()
    model(torch.randn(3, 11, dtype=torch.float64)).square().sum().backward()
    moved, still = update.randlora_lambda, update.randlora_gamma
    if init == "gamma_zero":
        moved, still = still, moved
    assert (moved.grad != 0).all() and not still.grad.any()


def test_randlora_b_uses_the_first_bases_of_the_same_matrices():
    full = inject_adapter(wide(17, 11), RandLoRAConfig(rank=2), ("0",))
    part = inject_adapter(wide(17, 11), RandLoRAConfig(rank=2, num_bases=3), ("0",))
    assert torch.equal(part[0].update.bases.B, full[0].update.bases.B[:, :3])
    assert part[0].update.randlora_lambda.shape == (2, 3)
    delta = perturbed(part)[0].update.delta_weight()
    assert torch.linalg.matrix_rank(delta) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distinct_a": True}, "needs num_bases"),
        ({"distinct_a": True, "num_bases": 3, "magnitude": True}, "not defined with magnitude"),
        ({"num_bases": 0}, "num_bases must be an integer of at least 1, got 0"),
        ({"basis": "imported", "seed": 4}, "seed=4 has no effect"),
    ],
)
def test_settings_that_do_not_go_together(fields, message):
    with pytest.raises(ValueError, match=message):
        RandLoRAConfig(rank=4, **fields)


def test_as_many_bases_as_full_rank_needs_are_refused():
    model = wide(17, 11)
    with pytest.raises(ValueError, match=r"num_bases=3 takes nothing away from layer '0'.*full rank with 3 bases"):
        inject_adapter(model, RandLoRAConfig(rank=4, num_bases=3), ("0",))
    with pytest.raises(ValueError, match="needs the matrices of a file"):
        inject_adapter(model, RandLoRAConfig(rank=4, basis="imported"), ("0",))
    assert type(model[0]) is nn.Linear and model[0].weight.requires_grad


def test_shifted_nola_is_the_authors_product_less_the_initial_one():
    config = NoLAConfig(rank=1, alpha=2.0, num_bases_a=7, num_bases_b=9, shifted=True)
    model = inject_adapter(wide(17, 11), config, ("0",))
    update, (bases,) = model[0].update, adapter_bases(model).values()
    a, b = (getattr(bases, name).double() * bases.units[name] for name in ("A", "B"))
    start = b.mean(0) @ a.mean(0)  # all coefficients are one over their number
    assert start.norm() > 0.1 and not update.delta_weight().any()
    perturbed(model)
    product = torch.einsum("l,lor->or", update.nola_beta, b) @ torch.einsum("k,kri->ri", update.nola_alpha, a)
    torch.testing.assert_close(update.delta_weight(), 2.0 * (product - start))


def test_shifted_nola_moves_both_vectors_at_once():
    """Unlike NOLA's own definition, where B starts at 0, so that the first step moves its coefficients only."""
    model = inject_adapter(wide(17, 11), NoLAConfig(rank=1, num_bases_a=7, num_bases_b=9, shifted=True), ("0",))
    model(torch.randn(3, 11, dtype=torch.float64)).square().sum().backward()
    assert (model[0].update.nola_alpha.grad != 0).all() and (model[0].update.nola_beta.grad != 0).all()


def test_lora_plus_gives_b_a_higher_learning_rate():
    model = nn.Sequential(nn.Linear(11, 17), nn.ReLU(), nn.Linear(17, 3))
    inject_adapter(model, LoRAConfig(rank=2), ("0",), trainable=("2",))
    slow, fast = lora_plus_groups(model, 1e-3, 16)
    update = model[0].update
    assert (slow["lr"], fast["lr"]) == (1e-3, 16e-3)
    assert fast["params"] == [update.lora_B]
    assert {id(p) for p in slow["params"]} == {id(update.lora_A), id(model[2].weight), id(model[2].bias)}
    optimizer = torch.optim.SGD([slow, fast])
    for parameter in (update.lora_A, update.lora_B):
        parameter.grad = torch.ones_like(parameter)
    before = [update.lora_A.detach().clone(), update.lora_B.detach().clone()]
    optimizer.step()
    torch.testing.assert_close(before[0] - update.lora_A, torch.full_like(before[0], 1e-3), rtol=0, atol=1e-7)
    torch.testing.assert_close(before[1] - update.lora_B, torch.full_like(before[1], 16e-3), rtol=0, atol=1e-7)


def test_lora_plus_refuses_what_it_cannot_act_on():
    model = inject_adapter(nn.Sequential(nn.Linear(11, 17)), RandLoRAConfig(rank=2), ("0",))
    with pytest.raises(ValueError, match="has no parameter lora_B"):
        lora_plus_groups(model, 1e-3, 16)
    lora = inject_adapter(nn.Sequential(nn.Linear(11, 17)), LoRAConfig(rank=2), ("0",))
    for lr, ratio in ((0.0, 16), (1e-3, -1), (1e-3, float("nan"))):
        with pytest.raises(ValueError, match="must be a finite number above 0"):
            lora_plus_groups(lora, lr, ratio)
