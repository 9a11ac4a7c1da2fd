"""Bases in groups: every path against the dense computation with the same matrices, zeros included."""

import pytest
import torch
from layer_operands import SHAPES, call, check_output_and_gradients, operands, oracle_delta
from test_randlora_linear import saved_by
from torch.utils._python_dispatch import TorchDispatchMode

from randlora_core import ops
from randlora_core.ops import cost
from randlora_core.ops.blocks import blocks_of_a, blocks_of_b, dense_a, dense_b
from randlora_core.ops.cost import PATHS

GROUPINGS = [(3, 3), (4, 2), (4, 4), (5, 5), (4, 1)]  # (rank, g): g = r and g < r; most leave a rest of some side


def grouped(shape: tuple[int, int], rank: int, groups: int, **options) -> tuple[dict, dict]:
    """Operands with bases that are zero between groups, entry by entry; and the same ones as blocks."""
    dense = operands(shape, rank, **options)
    a, b = dense["basis_a"].clone(), dense["basis_b"].clone()
    for k in range(rank):
        for i in range(a.shape[1]):
            a[k, i] *= k % groups == i % groups
        for o in range(len(b)):
            b[o, :, k] *= o % groups == k % groups
    blocks_a = torch.stack([a[i % groups :: groups, i] for i in range(a.shape[1])], dim=1)
    blocks_b = torch.stack([b[o, :, o % groups :: groups] for o in range(len(b))])
    wider = torch.cat([blocks_b, blocks_b], dim=1)[:, : blocks_b.shape[1]]  # a slice, as a layer's part of a shared B
    return dense | {"basis_a": a, "basis_b": b}, dense | {"basis_a": blocks_a, "basis_b": wider}


every_grouping = pytest.mark.parametrize(("rank", "groups"), GROUPINGS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@every_grouping
@every_shape
def test_blocks_and_dense_matrices_are_made_of_each_other(shape, rank, groups):
    dense, blocks = grouped(shape, rank, groups)
    assert torch.equal(dense_a(blocks["basis_a"], groups), dense["basis_a"])
    assert torch.equal(dense_b(blocks["basis_b"], groups), dense["basis_b"])
    assert torch.equal(blocks_of_a(dense["basis_a"], groups), blocks["basis_a"])
    assert torch.equal(blocks_of_b(dense["basis_b"], groups), blocks["basis_b"])
    signs = dense["basis_a"].sign().to(torch.int8)
    assert torch.equal(dense_a(blocks_of_a(signs, groups), groups), signs)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("path", PATHS)
@every_grouping
@every_shape
def test_output_and_gradients_equal_those_of_the_dense_matrices(shape, rank, groups, path, joint):
    dense, blocks = grouped(shape, rank, groups)
    leaves = (dense["lambda_"], dense["gamma"])
    check_output_and_gradients(blocks, oracle_delta(shape, **dense), leaves, path, joint)


@every_grouping
@every_shape
def test_the_update_and_its_gradients_equal_those_of_the_dense_matrices(shape, rank, groups):
    dense, blocks = grouped(shape, rank, groups)
    leaves, upstream = (dense["lambda_"], dense["gamma"]), torch.randn(shape, dtype=torch.float64)
    expected = oracle_delta(shape, **dense)
    update = ops.delta(**blocks, transposed=shape[0] < shape[1])
    torch.testing.assert_close(update, expected)
    grads = torch.autograd.grad(update, leaves, upstream)
    for grad, known in zip(grads, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(grad, known)


@pytest.mark.parametrize("path", ["activation", "weight"])
@pytest.mark.parametrize("trained", [("x",), ("lambda_",), ("gamma",), ("x", "gamma")])
@pytest.mark.parametrize("shape", [(10, 7), (7, 10)])
def test_only_what_needs_a_gradient_gets_one(shape, path, trained):
    dense, blocks = grouped(shape, 3, 3)
    leaves = {"x": torch.randn(4, shape[1], dtype=torch.float64), **{k: dense[k] for k in ("lambda_", "gamma")}}
    leaves = {name: leaf.detach().requires_grad_(name in trained) for name, leaf in leaves.items()}
    x, vectors, weight = leaves["x"], {k: leaves[k] for k in ("lambda_", "gamma")}, torch.randn(shape).double()
    wanted = [leaves[name] for name in trained]
    expected = torch.autograd.grad((x @ (weight + oracle_delta(shape, **dense | vectors)).T).square().sum(), wanted)
    call(x, blocks | vectors, weight, None, path).square().sum().backward()
    assert all((leaf.grad is not None) == (name in trained) for name, leaf in leaves.items())
    for leaf, grad in zip(wanted, expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


@pytest.mark.parametrize("path", PATHS)
def test_one_token_none_and_transposed_views(path):
    shape = (7, 10)
    dense, blocks = grouped(shape, 4, 2)
    weight = torch.randn(shape, dtype=torch.float64)
    exact = (weight + oracle_delta(shape, **dense)).detach()
    token = torch.randn(shape[1], dtype=torch.float64)
    torch.testing.assert_close(call(token, blocks, weight, None, path), exact @ token)
    assert call(token.new_empty(0, shape[1]), blocks, weight, None, path).shape == (0, shape[0])
    x = torch.randn(4, 2, shape[1], dtype=torch.float64).transpose(0, 1)
    torch.testing.assert_close(call(x, blocks, weight, None, path), x @ exact.T)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(48, 36), (36, 48)])
def test_keeps_the_input_or_its_smaller_product_with_b(shape, path):
    _, blocks = grouped(shape, 4, 4, dtype=torch.float32)
    weight, x = torch.randn(shape), torch.randn(64, shape[1], requires_grad=True)
    saved = saved_by(lambda: call(x, blocks, weight, None, path))
    frozen = [blocks["lambda_"], blocks["gamma"], blocks["basis_a"], blocks["basis_b"], weight]
    known = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    (kept,) = (tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in known)
    if path == "activation" and shape[0] < shape[1]:
        assert kept.numel() == 36 * 64 < x.numel()
    else:
        is_input = kept.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert is_input or (path == "auto" and kept.numel() == 36 * 64 < x.numel())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(48, 36), (36, 48)])
def test_small_updates_survive_16_bits(shape, dtype, path):
    """An update far below the weight's rounding moves the output in the mean, and its gradients are in range."""
    dense, blocks = grouped(shape, 4, 4, dtype=torch.float32)
    small = {"lambda_": (1e-3 * blocks["lambda_"]).detach().requires_grad_()}
    x, weight = torch.randn(4096, shape[1]).to(dtype), torch.randn(shape).to(dtype)
    output = call(x, blocks | small, weight, None, path)
    update = oracle_delta(shape, **dense | small).detach()
    shift = output.detach().double() - x.double() @ weight.double().T
    expected = x.double() @ update.double().T
    assert (shift * expected).sum() / expected.square().sum() == pytest.approx(1.0, abs=0.05)
    upstream = torch.randn(output.shape).to(dtype)
    grads = torch.autograd.grad(output, (small["lambda_"], blocks["gamma"]), upstream)
    exact = upstream.double().T @ x.double()
    known = torch.autograd.grad(
        oracle_delta(shape, **dense | small), (small["lambda_"], blocks["gamma"]), exact.float()
    )
    for grad, reference in zip(grads, known, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - reference).norm() <= 0.02 * reference.norm()


class PaddedShapes(TorchDispatchMode):
    """Keeps the shapes of the tensors that are filled up with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.constant_pad_nd.default:
            self.shapes.append(args[0].shape)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(13, 7), (7, 13)])
def test_a_backward_pass_fills_up_b_once_whatever_paths_its_parts_take(shape, dtype, monkeypatch):
    _, blocks = grouped(shape, 4, 2)
    assert max(shape) % 2 == 1
    x, weight = torch.randn(5, shape[1], dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)
    problem = cost.Problem(5, *shape, 8, dtype, "cpu", dtype == torch.float64, True, True, 2)
    combinations = {paths for path in PATHS for paths in cost.allowed(problem, path)}
    assert len(combinations) == (8 + 1 if dtype == torch.float64 else 2)  # two_products in double precision, too
    for paths in combinations:
        monkeypatch.setattr(cost, "choose", lambda problem, path, paths=paths: paths)
        output = call(x, blocks, weight, None, "auto")
        with PaddedShapes() as padded:
            output.sum().backward()
        flat_b = (max(shape), blocks["basis_b"][0].numel())
        assert [tuple(s) for s in padded.shapes].count(flat_b) == 1, paths


def test_blocks_cost_one_part_in_g_of_the_multiplications():
    """Counted by torch: all products by activations, forward and backward, but the frozen layer's.

    The gradients of lambda and gamma, about 1 / T of the work, are counted for dense bases only.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def flops(given: dict) -> int:
        x = torch.randn(8, 36, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            ops.added_output(x, **given, path="activation").sum().backward()
        return counter.get_total_flops()

    dense, blocks = grouped((48, 36), 4, 4, dtype=torch.float32)
    assert 0.95 <= flops(blocks) / (flops(dense) / 4) <= 1.0


@pytest.mark.parametrize("half", [False, True])
def test_peak_memory_of_a_transformer_block_is_within_loras(half):
    """Goal (d) of docs/performance.md, counted in live bytes."""
    from randlora_core.benchmarking.cases import vision_case
    from randlora_core.benchmarking.measure import measure_memory

    case = vision_case("small", 192, 8, 50, rank=6, half=half)
    methods = ("lora", "randlora_blocks")
    peaks = {name: peak for name, (peak, _) in measure_memory(case, methods, device=torch.device("cpu")).items()}
    assert peaks["randlora_blocks"] <= 1.02 * peaks["lora"]
