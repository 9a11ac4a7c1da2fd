"""The rescaled output against its formula: values, gradients, number formats, and what it keeps."""

import pytest
import torch

from randlora_core import ops

with_and_without_bias = pytest.mark.parametrize("with_bias", [True, False])


def operands(dtype, with_bias, shape=(3, 4, 5)):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    frozen, added = draw(*shape), draw(*shape)
    bias = draw(shape[-1]).requires_grad_() if with_bias else None
    ratio = (1 + 0.3 * draw(shape[-1])).to(torch.promote_types(dtype, torch.float32))
    return frozen.requires_grad_(), added.requires_grad_(), bias, ratio.requires_grad_()


def formula(frozen, added, bias, ratio):
    shift = 0.0 if bias is None else bias
    return ratio * (frozen - shift + added) + shift


@with_and_without_bias
@pytest.mark.parametrize("shape", [(3, 4, 5), (5,), (0, 5)])
def test_values_and_gradients(shape, with_bias):
    given = operands(torch.float64, with_bias, shape)
    torch.testing.assert_close(ops.rescaled(*given), formula(*given))
    assert torch.autograd.gradcheck(ops.rescaled, given) or not given[0].numel()


@with_and_without_bias
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once(dtype, with_bias):
    given = operands(dtype, with_bias, shape=(64, 48))
    exact = [None if value is None else value.detach().double().requires_grad_() for value in given]
    output, expected = ops.rescaled(*given), formula(*exact)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    upstream = torch.randn(64, 48).to(dtype)
    output.backward(upstream)
    expected.backward(upstream.double())
    for value, known in zip(given, exact, strict=True):
        if value is not None:
            assert value.grad.dtype == value.dtype
            assert (value.grad.double() - known.grad).norm() <= 2 * torch.finfo(dtype).eps * known.grad.norm()


@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_float16_products_of_gradient_and_output_stay_in_range(size):
    frozen, added, bias, ratio = operands(torch.float16, False, shape=(64, 5))
    given = [(size * value).detach() for value in (frozen, added)]
    upstream = (size * torch.randn(64, 5)).half()
    (found,) = torch.autograd.grad(ops.rescaled(*given, bias, ratio), ratio, upstream)
    torch.testing.assert_close(
        found, (upstream.float() * (given[0].float() + given[1])).sum(0), rtol=0.01, atol=0.01 * size**2
    )


@with_and_without_bias
def test_an_update_within_the_first_argument(with_bias):
    frozen, added, bias, ratio = operands(torch.float64, with_bias)
    total = (frozen + added).detach().requires_grad_()
    torch.testing.assert_close(ops.rescaled(total, None, bias, ratio), ops.rescaled(frozen, added, bias, ratio))
    assert torch.autograd.gradcheck(ops.rescaled, (total, None, bias, ratio))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_one_tensor_of_the_outputs_size(dtype):
    frozen, added, bias, ratio = operands(dtype, True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ops.rescaled(frozen, added, bias, ratio)
    assert [tensor.dtype for tensor in kept if tensor.shape == frozen.shape] == [dtype]


@with_and_without_bias
def test_without_update_the_output_is_the_frozen_one_to_the_bit(with_bias):
    frozen, _, bias, _ = operands(torch.bfloat16, with_bias)
    assert torch.equal(ops.rescaled(frozen, torch.zeros_like(frozen), bias, torch.ones(5)), frozen)


def test_only_wanted_gradients_are_made():
    frozen, added, bias, ratio = operands(torch.float64, True)
    for wanted in (frozen, added, bias, ratio):
        given = [value if value is wanted else value.detach() for value in (frozen, added, bias, ratio)]
        (found,) = torch.autograd.grad(ops.rescaled(*given).square().sum(), wanted)
        (known,) = torch.autograd.grad(formula(*given).square().sum(), wanted)
        torch.testing.assert_close(found, known)
