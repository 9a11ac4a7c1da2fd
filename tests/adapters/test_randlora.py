"""RandLoRA against the paper's equation 4 and against Hugging Face PEFT."""

import copy
import math

import pytest
import torch
from peft import RandLoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from randlora_core import RandLoRAConfig, adapter_parameters, inject_adapter, ops
from randlora_core.adapters.bases import Matrix, SharedBases
from randlora_core.adapters.distributions import distribution
from randlora_core.adapters.randlora import num_bases
from randlora_core.adapters.state import adapter_bases, adapter_layers

UNIFORM = distribution("uniform")
# (out, in, rank): D > d both ways, D = d, r dividing d and not, one basis only
CASES = [(17, 11, 4), (11, 17, 4), (11, 11, 4), (16, 8, 4), (8, 16, 2), (12, 12, 12), (9, 13, 1), (13, 9, 9)]


def operands(out_features: int, in_features: int, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random float64 lambda (r, n), gamma (n, d), A (r, d) and B (D, n, r)."""
    generator = torch.Generator().manual_seed(0)
    d, larger = sorted((out_features, in_features))
    n = num_bases(rank, (out_features, in_features))
    shapes = (rank, n), (n, d), (rank, d), (larger, n, rank)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def equation_4(lambda_: Tensor, gamma: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum_j B_j Lambda_j A Gamma_j, (D, d), with explicit diagonal matrices; b holds B_j as b[:, j]."""
    terms = [b[:, j] @ torch.diag(lambda_[:, j]) @ a @ torch.diag(gamma[j]) for j in range(lambda_.shape[1])]
    return torch.stack(terms).sum(dim=0)


def relabelled(b: Tensor) -> Tensor:
    """B with its columns where equation 4 has them, given PEFT's pairing.

    Column j r + k of the flattened B meets row k' n + j' of the scaled A, the row of basis j' and rank k'. So B_{j'}
    has as its column k' the flattened column number k' n + j'.
    """
    larger, n, r = b.shape
    flat = b.reshape(larger, n * r)
    result = torch.empty_like(b)
    for j in range(n):
        for k in range(r):
            result[:, j, k] = flat[:, k * n + j]
    return result


@pytest.mark.parametrize(("out_features", "in_features", "rank"), CASES)
def test_delta_is_equation_4_of_relabelled_bases(out_features, in_features, rank):
    lambda_, gamma, a, b = operands(out_features, in_features, rank)
    expected = 0.7 * equation_4(lambda_, gamma, a, relabelled(b))
    transposed = out_features < in_features
    actual = ops.delta(lambda_, gamma, a, b, 0.7, transposed=transposed)
    assert actual.shape == (out_features, in_features)
    torch.testing.assert_close(actual, expected.T if transposed else expected, rtol=1e-12, atol=1e-12)
    if 1 < rank < min(out_features, in_features):
        literal = 0.7 * equation_4(lambda_, gamma, a, b)
        assert (literal - expected).norm() > 0.5 * expected.norm()  # the pairing matters


@pytest.mark.parametrize(("out_features", "in_features", "rank"), CASES)
def test_gradients_of_the_operation(out_features, in_features, rank):
    lambda_, gamma, a, b = operands(out_features, in_features, rank)
    layer = nn.Linear(in_features, out_features, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(2, 3, in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def output(x: Tensor, lambda_: Tensor, gamma: Tensor) -> Tensor:
        return ops.randlora_linear(x, lambda_, gamma, a, b, 0.3, base=layer)

    leaves = [t.clone().requires_grad_() for t in (x, lambda_, gamma)]
    assert torch.autograd.gradcheck(output, leaves)
    weight = layer.weight + ops.delta(lambda_, gamma, a, b, 0.3, transposed=out_features < in_features)
    torch.testing.assert_close(output(x, lambda_, gamma), nn.functional.linear(x, weight, layer.bias))


def with_bases_of_peft(model: nn.Module, tuner: nn.Module) -> None:
    """Replace the bases by PEFT's own and the parameters by PEFT's, in place."""
    (bases,) = adapter_bases(model).values()
    larger, n, r = bases.B.shape
    bases.A = tuner.randlora_A["default"][:, 0, : bases.A.shape[1]].clone()
    bases.B = tuner.randlora_B["default"][:larger, :n, :r].clone()


def parity_pair(layer: nn.Module, rank: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The same layer in PEFT (model and its tuner layer) and here, with equal bases and random parameters."""
    transposed = isinstance(layer, Conv1D)
    config = RandLoraConfig(r=rank, randlora_alpha=3 * rank, target_modules=["0"], fan_in_fan_out=transposed)
    ours = nn.Sequential(copy.deepcopy(layer))
    peft_model = get_peft_model(nn.Sequential(layer), config)
    tuner = peft_model.base_model.model[0]
    inject_adapter(ours, RandLoRAConfig(rank=rank, alpha=3 * rank), ("0",))
    with_bases_of_peft(ours, tuner)
    torch.manual_seed(5)
    with torch.no_grad():
        for name in ("randlora_lambda", "randlora_gamma"):
            values = torch.randn_like(getattr(tuner, name)["default"])
            getattr(tuner, name)["default"].copy_(values)
            ours[0].update.get_parameter(name).copy_(values)
    return peft_model, tuner, ours


@pytest.mark.parametrize(("out_features", "in_features", "rank"), CASES)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_parity_with_peft(kind, out_features, in_features, rank):
    torch.manual_seed(0)
    layer = nn.Linear(in_features, out_features) if kind == "linear" else Conv1D(out_features, in_features)
    peft_model, tuner, ours = parity_pair(layer, rank)
    delta = tuner.get_delta_weight("default")
    delta = delta.T if kind == "conv1d" else delta
    torch.testing.assert_close(ours[0].update.delta_weight(), delta, rtol=1e-5, atol=1e-4)

    x = torch.randn(4, in_features, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), peft_model(x), rtol=1e-5, atol=1e-3)
    ours(x).sin().sum().backward()
    peft_model(x).sin().sum().backward()
    for name in ("randlora_lambda", "randlora_gamma"):
        expected = getattr(tuner, name)["default"].grad
        # sin' of outputs up to 100 turns their float32 rounding into errors of 1e-5 relative to the largest gradient
        torch.testing.assert_close(
            ours[0].update.get_parameter(name).grad, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()
        )


def test_start_equals_pefts():
    peft_model = get_peft_model(
        nn.Sequential(nn.Linear(17, 11), nn.Linear(11, 9)), RandLoraConfig(r=4, target_modules=["0", "1"])
    )
    ours = inject_adapter(nn.Sequential(nn.Linear(17, 11), nn.Linear(11, 9)), RandLoRAConfig(rank=4), "all-linear")
    for index, layer in enumerate(adapter_layers(ours).values()):
        tuner = peft_model.base_model.model[index]
        assert torch.equal(layer.update.randlora_lambda, tuner.randlora_lambda["default"])
        assert torch.equal(layer.update.randlora_gamma, tuner.randlora_gamma["default"])
    assert layer.update.config.scale == 20.0


@pytest.mark.parametrize(("shape", "n"), [((17, 11), 3), ((12, 30), 3), ((4, 4), 1), ((5, 4), 1)])
def test_initial_values(shape, n):
    """Both published initialisations; lambda is 1 / max(n, r), or gamma 1 / max(n, d)."""
    bases = SharedBases(0, {"A": Matrix((4, 12), UNIFORM), "B": Matrix((30, 3, 4), UNIFORM)})
    assert num_bases(4, shape) == n
    for init in ("lambda_zero", "gamma_zero"):
        model = nn.Sequential(nn.Linear(shape[1], shape[0]))
        update = inject_adapter(model, RandLoRAConfig(rank=4, init=init), ("0",))[0].update
        lambda_, gamma = (0.0, 1 / max(n, min(shape))) if init == "lambda_zero" else (1 / max(n, 4), 0.0)
        assert torch.equal(update.randlora_lambda, torch.full((4, n), lambda_))
        assert torch.equal(update.randlora_gamma, torch.full((n, min(shape)), gamma))
        assert torch.equal(update.bases.A, bases.A[:, : min(shape)])


def test_scale():
    def factor(**fields: object) -> float:
        model = inject_adapter(nn.Sequential(nn.Linear(17, 11)), RandLoRAConfig(rank=4, **fields), ("0",))
        return model[0].update.scale

    assert factor() == 20.0
    assert factor(alpha=10) == 2.5
    assert factor(alpha=10, scale_by_sqrt_bases=True) == pytest.approx(2.5 / math.sqrt(3))
    # Both bases carry the unit sqrt(s / 2), exactly.
    assert factor(alpha=10, basis="sparse") == pytest.approx(2.5 * 3.0)
    assert factor(alpha=10, basis="binary") == 2.5


def test_very_sparse_resolves_to_the_square_root_of_the_largest_smaller_side():
    model = nn.Sequential(nn.Linear(64, 30), nn.Linear(30, 100), nn.Linear(100, 36))
    inject_adapter(model, RandLoRAConfig(rank=3, basis="very_sparse"), ("0", "2"))
    for layer in adapter_layers(model).values():
        assert (layer.update.config.basis, layer.update.config.sparsity) == ("ternary", 6.0)
    (bases,) = adapter_bases(model).values()
    assert torch.equal(bases.B, SharedBases(0, {"B": Matrix(tuple(bases.B.shape), distribution("sparse"))}).B)


def test_bases_are_no_larger_than_the_targets_need():
    model = nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 12), nn.Linear(12, 40), nn.Linear(40, 40))
    inject_adapter(model, RandLoRAConfig(rank=6), ("0", "1", "2"))
    (bases,) = adapter_bases(model).values()
    assert bases.shapes == {"A": (6, 20), "B": (64, 4, 6)}


def test_one_pair_of_bases_for_each_rank():
    model = nn.Sequential(*(nn.Linear(12, 20) for _ in range(4)))
    config = RandLoRAConfig(rank=6, rank_pattern={"1": 3, "3": 3}, alpha_pattern={"1": 1.5})
    inject_adapter(model, config, "all-linear")
    bases = adapter_bases(model)
    assert {rank: shared.shapes["B"] for rank, shared in bases.items()} == {6: (20, 2, 6), 3: (20, 4, 3)}
    updates = [layer.update for layer in adapter_layers(model).values()]
    assert [update.config.rank for update in updates] == [6, 3, 6, 3]
    assert [update.scale for update in updates] == [20.0, 0.5, 20.0, 20.0]
    assert updates[1].bases is updates[3].bases is bases[3]


def test_a_layers_bases_do_not_depend_on_the_other_targets():
    def update_of(*targets: str) -> nn.Module:
        model = nn.Sequential(nn.Linear(11, 9), nn.Linear(9, 60), nn.Linear(60, 50))
        return inject_adapter(model, RandLoRAConfig(rank=4, seed=3), targets)[0].update

    alone, beside = update_of("0"), update_of("0", "1", "2")
    assert beside.bases.B.shape[0] > alone.bases.B.shape[0]
    for a, b in zip(alone.basis_slices(), beside.basis_slices(), strict=True):
        assert torch.equal(a, b)


def test_a_small_delta_survives_a_low_precision_scale():
    """The scale is folded in before the half-precision product, so tiny factors are not flushed to zero."""
    lambda_, gamma = torch.full((2, 3), 1e-4), torch.full((3, 6), 1 / 4096)
    m = ops.scaled_a(lambda_, gamma, torch.ones(2, 6), 1e3)
    assert (m.half() != 0).all()
    torch.testing.assert_close(m, torch.full((6, 6), 1e-1 / 4096))


def test_full_rank_from_one_adapter_step_of_gamma():
    """With constant gamma (the start) the update has rank r only; a trained gamma spreads it to full rank."""
    model = inject_adapter(nn.Sequential(nn.Linear(24, 32)).double(), RandLoRAConfig(rank=3), ("0",))
    update = model[0].update
    with torch.no_grad():
        update.randlora_lambda.normal_()
        values = torch.linalg.svdvals(update.delta_weight())
        assert (values > 1e-10 * values[0]).sum() == 3
        update.randlora_gamma.normal_()
        values = torch.linalg.svdvals(update.delta_weight())
        assert (values > 1e-10 * values[0]).sum() == 24
    assert sum(p.numel() for p in adapter_parameters(model)) == 8 * (3 + 24)
