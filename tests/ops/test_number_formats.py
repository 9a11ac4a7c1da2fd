"""Small updates, gradients and magnitudes in 16 bits: what arrives of them, on every path."""

import pytest
import torch
from layer_operands import call, operands, oracle_delta
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import DoRAConfig, RandLoRAConfig, inject_adapter
from randlora_core.ops.cost import PATHS


def small_update(shape: tuple[int, int], path_dtype: torch.dtype = torch.bfloat16) -> tuple[dict, Tensor, Tensor]:
    """Operands whose update has 2^-10 of the norm of a weight that is exact in 16 bits; the weight, and the update."""
    given = operands(shape, rank=4, dtype=torch.float32)
    given["basis_a"], given["basis_b"] = given["basis_a"].to(torch.bfloat16), given["basis_b"].to(torch.bfloat16)
    weight = torch.randn(shape).to(path_dtype).float()
    update = oracle_delta(shape, **given).detach()
    ratio = (2**-10 * weight.norm() / update.norm()).item()
    given["scale"] *= ratio
    return given, weight, ratio * update


def recovered(change: Tensor, expected: Tensor) -> float:
    """Least-squares factor of the expected change in the one that arrived."""
    return ((change.double() * expected.double()).sum() / expected.double().square().sum()).item()


@pytest.mark.parametrize("regime", ["float32", "autocast", "bfloat16", "float16"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(192, 96), (96, 192)])
def test_a_small_update_reaches_output_and_gradients(shape, path, regime):
    dtype = torch.float16 if regime == "float16" else torch.bfloat16
    given, weight, update = small_update(shape, dtype)
    bias = 4.0 * torch.randn(shape[0]).to(dtype).float()
    x = torch.randn(768, shape[1]).to(dtype).float()
    upstream = torch.randn(768, shape[0]).to(dtype).float()
    if regime in ("bfloat16", "float16"):
        x, weight, bias, upstream = (tensor.to(dtype) for tensor in (x, weight, bias, upstream))
    x.requires_grad_()

    def run(function):
        with torch.autocast("cpu", torch.bfloat16, enabled=regime == "autocast"):
            y = function()
        x.grad = None
        y.backward(upstream.to(y.dtype))
        return y.detach(), x.grad

    frozen, frozen_grad = run(lambda: F.linear(x, weight, bias))
    adapted, grad = run(lambda: call(x, given, weight, bias, path))
    assert adapted.dtype == frozen.dtype and grad.dtype == frozen_grad.dtype
    # 18,432 or more rounded outputs: the mean effect is known to a few percent; lost updates give 0 to 0.6.
    expected = x.detach().float() @ update.T
    assert recovered(adapted.float() - frozen.float(), expected) == pytest.approx(1.0, abs=0.1)
    assert recovered(grad.float() - frozen_grad.float(), upstream.float() @ update) == pytest.approx(1.0, abs=0.1)


def test_the_summed_weight_would_lose_the_small_update_in_half_precision():
    """The reason for two products: the check above can fail."""
    _, weight, update = small_update((192, 96))
    x = torch.randn(768, 96).bfloat16()
    change = F.linear(x, (weight + update).bfloat16()).float() - F.linear(x, weight.bfloat16()).float()
    assert recovered(change, x.float() @ update.T) < 0.8


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(64, 48), (48, 64)])
def test_half_precision_gradients_of_the_vectors(path, shape):
    given = operands(shape, rank=4, dtype=torch.float32)
    given["scale"] = 0.01
    weight, x = torch.randn(shape), torch.randn(256, shape[1], requires_grad=True)
    upstream = torch.randn(256, shape[0])
    leaves = (given["lambda_"], given["gamma"])
    exact = torch.autograd.grad(F.linear(x, oracle_delta(shape, **given)), leaves, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(x, given, weight, None, path)
    grads = torch.autograd.grad(y, leaves, upstream.bfloat16())
    for grad, expected in zip(grads, exact, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - expected).norm() < 0.01 * expected.norm()  # bfloat16 rounds to 2^-9 = 0.002


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(512, 64), (64, 512)])
def test_gradients_of_the_vectors_are_finite_in_float16_where_full_fine_tunings_are(path, shape):
    """The gradient of M is about sqrt(512) larger than that of the weight, which fills a quarter of the range here."""
    given = operands(shape, rank=4, dtype=torch.float32)
    given["scale"] = 1e-3
    leaves = (given["lambda_"], given["gamma"])
    weight, x, upstream = torch.randn(shape).half(), torch.randn(256, shape[1]), torch.randn(256, shape[0])
    upstream *= 16000 / (upstream.T @ x).abs().max()
    exact = torch.autograd.grad(F.linear(x, oracle_delta(shape, **given)), leaves, upstream)
    y = call(x.half(), given, weight, None, path)
    for grad, expected in zip(torch.autograd.grad(y, leaves, upstream.half()), exact, strict=True):
        assert grad.isfinite().all()
        assert (grad - expected).norm() < 0.005 * expected.norm()


def test_products_in_tf32_or_bfloat16_mode_do_not_take_the_summed_weight():
    given, weight, update = small_update((192, 96))
    x = torch.randn(768, 96)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        frozen = F.linear(x, weight)
        adapted = call(x, given, weight, None, "weight").detach()
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert recovered(adapted - frozen, x @ update.T) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("config", [DoRAConfig(rank=4), RandLoRAConfig(rank=4, magnitude=True)])
def test_a_small_change_of_the_magnitude_arrives_in_bfloat16(config, bias):
    """By 3 of 1024, which a ratio rounded to bfloat16 does not hold: it would give 0."""
    torch.manual_seed(0)
    model = inject_adapter(nn.Sequential(nn.Linear(96, 192, bias=bias)), config, ["0"])
    x = torch.randn(768, 96)
    outputs = []
    for factor in (1.0, 1.0 + 3 * 2**-10):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model[0].update.lora_magnitude_vector.mul_(factor)
            outputs.append(model(x).float())
    expected = 3 * 2**-10 * (x @ model[0].base.weight.T)
    assert recovered(outputs[1] - outputs[0], expected) == pytest.approx(1.0, abs=0.1)
