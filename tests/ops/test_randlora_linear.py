"""Every path against the paper's sum, in values, gradients, number formats and what it saves."""

import copy
import itertools
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core import DoRAConfig, RandLoRAConfig, inject_adapter, ops
from randlora_core.ops import cost
from randlora_core.ops.cost import PATHS

CPU = torch.device("cpu")
SHAPES = [(10, 6), (6, 10), (8, 8), (7, 5)]  # (out, in); rank 3 divides 6 only


def operands(shape: tuple[int, int], rank: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict:
    """Random operands of a layer; the bases are slices of larger matrices, as in a model."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    larger, smaller = max(shape), min(shape)
    n = -(-smaller // rank)
    return {
        "lambda_": draw(rank, n).requires_grad_(),
        "gamma": draw(n, smaller).requires_grad_(),
        "basis_a": draw(rank, smaller + 3)[:, :smaller],
        "basis_b": draw(larger + 2, n + 1, rank)[:larger, :n],
        "scale": 0.3,
    }


def oracle_delta(shape, lambda_, gamma, basis_a, basis_b, scale) -> Tensor:
    """The update entry by entry: column c of B, flattened, meets row c of the scaled A in PEFT's two orders."""
    rank, n = lambda_.shape
    pairs_b = [(j, k) for j in range(n) for k in range(rank)]
    pairs_a = [(k, j) for k in range(rank) for j in range(n)]
    total = 0.0
    for (j, k), (row, basis) in zip(pairs_b, pairs_a, strict=True):
        column = basis_b[:, j, k].to(lambda_.dtype)
        total = total + torch.outer(column, lambda_[row, basis] * basis_a[row].to(lambda_.dtype) * gamma[basis])
    total = scale * total
    return total.T if shape[0] < shape[1] else total


def call(x: Tensor, given: dict, weight: Tensor, bias: Tensor | None, path: str, joint: bool = True) -> Tensor:
    return ops.randlora_linear(
        x,
        **given,
        base=lambda x: F.linear(x, weight, bias),
        weight=(lambda: weight) if joint else None,
        bias=bias,
        path=path,
    )


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_papers_sum(shape, path, joint):
    given = operands(shape)
    weight, bias = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    x = torch.randn(2, 4, shape[1], dtype=torch.float64, requires_grad=True)
    leaves = (x, given["lambda_"], given["gamma"])
    upstream = torch.randn(2, 4, shape[0], dtype=torch.float64)

    expected = F.linear(x, weight + oracle_delta(shape, **given), bias)
    expected_grads = torch.autograd.grad(expected, leaves, upstream)
    output = call(x, given, weight, bias, path, joint)
    grads = torch.autograd.grad(output, leaves, upstream)

    torch.testing.assert_close(output, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert expected_grad.abs().max() > 1e-3
        torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(shape, path, with_bias):
    given = operands(shape)
    weight = torch.randn(shape, dtype=torch.float64)
    bias = torch.randn(shape[0], dtype=torch.float64, requires_grad=True) if with_bias else None
    x = torch.randn(5, shape[1], dtype=torch.float64, requires_grad=True)

    def function(x, lambda_, gamma, *bias):
        vectors = given | {"lambda_": lambda_, "gamma": gamma}
        return call(x, vectors, weight, bias[0] if bias else None, path)

    leaves = (x, given["lambda_"], given["gamma"]) + ((bias,) if with_bias else ())
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("trained", [("x",), ("lambda_",), ("gamma",), ("lambda_", "gamma"), ("x", "gamma")])
def test_only_what_needs_a_gradient_gets_one(path, trained):
    shape = (6, 10)
    given = operands(shape)
    tensors = {"x": torch.randn(4, shape[1], dtype=torch.float64), **given}
    for name in ("x", "lambda_", "gamma"):
        tensors[name] = tensors[name].detach().requires_grad_(name in trained)
    x, vectors = tensors["x"], {name: tensors[name] for name in given}
    weight = torch.randn(shape, dtype=torch.float64)
    expected = torch.autograd.grad(
        F.linear(x, weight + oracle_delta(shape, **vectors)).square().sum(), [tensors[name] for name in trained]
    )
    call(x, vectors, weight, None, path).square().sum().backward()
    for name in ("x", "lambda_", "gamma"):
        assert (tensors[name].grad is not None) == (name in trained)
    for name, grad in zip(trained, expected, strict=True):
        torch.testing.assert_close(tensors[name].grad, grad)


def saved_by(function) -> list[Tensor]:
    """The tensors that autograd keeps of a computation, one for each storage."""
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = function()  # noqa: F841  (freed storages would be handed out again)
    return list(saved.values())


@pytest.mark.parametrize("path", ["weight", "two_products", "activation"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("trains", [True, False])
def test_saves_the_input_or_its_smaller_product_with_b(shape, path, trains):
    given = operands(shape, dtype=torch.float32)
    for name in ("lambda_", "gamma"):
        given[name].requires_grad_(trains)
    weight, x = torch.randn(shape), torch.randn(64, shape[1], requires_grad=True)
    saved = saved_by(lambda: call(x, given, weight, None, path))
    frozen = [given["lambda_"], given["gamma"], given["basis_a"], given["basis_b"], weight]
    known = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    others = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in known]
    if not trains:
        assert others == []
    elif path == "activation" and shape[0] < shape[1]:
        (through_b,) = others
        torch.testing.assert_close(through_b, x.detach() @ given["basis_b"].flatten(1))
        assert through_b.numel() < x.numel()
    else:
        assert [tensor.untyped_storage().data_ptr() for tensor in others] == [x.untyped_storage().data_ptr()]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_layouts_and_a_second_backward_pass(shape, path):
    """One token without a batch, x and the output's gradient as transposed views, and a graph that is kept."""
    given = operands(shape)
    weight, bias = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    exact = weight + oracle_delta(shape, **given).detach()
    token = torch.randn(shape[1], dtype=torch.float64)
    torch.testing.assert_close(call(token, given, weight, bias, path), F.linear(token, exact, bias))

    x = torch.randn(4, 2, shape[1], dtype=torch.float64).transpose(0, 1).requires_grad_()
    upstream = torch.randn(shape[0], 4, 2, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous() and not upstream.is_contiguous()
    leaves = (x, given["lambda_"], given["gamma"])
    expected = torch.autograd.grad(F.linear(x, weight + oracle_delta(shape, **given), bias), leaves, upstream)
    output = call(x, given, weight, bias, path)
    for _ in range(2):
        for grad, known in zip(torch.autograd.grad(output, leaves, upstream, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(grad, known)


def test_vectors_of_different_types_meet_in_the_wider_one():
    given = operands((6, 10))
    narrow = given["lambda_"].detach().float()
    with torch.no_grad():
        m = ops.scaled_a(narrow, given["gamma"], given["basis_a"], 0.3)
    assert m.dtype == torch.float64
    torch.testing.assert_close(m, ops.scaled_a(narrow, given["gamma"], given["basis_a"], 0.3).detach())


@pytest.mark.parametrize("shape", [(256, 64), (64, 256), (128, 128)])
def test_peak_memory_of_a_16_bit_layer_is_loras(shape):
    """Goal (c) on one layer, where the order of the backward pass and what is saved both show in bytes."""
    from randlora_core.benchmarking.cases import layer_case
    from randlora_core.benchmarking.measure import measure_memory

    case = layer_case(*shape, 4096, rank=8, half=True)
    peaks = {name: peak for name, (peak, _) in measure_memory(case, ("lora", "randlora"), device=CPU).items()}
    assert peaks["randlora"] <= 1.02 * peaks["lora"]


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


def test_force_path_reaches_every_layer_and_ends(monkeypatch):
    seen = []
    choose = cost.choose

    def record(problem, path="auto"):
        seen.append(path)
        return choose(problem, path)

    monkeypatch.setattr(cost, "choose", record)
    given, weight, x = operands((6, 10)), torch.randn(6, 10, dtype=torch.float64), torch.randn(3, 10).double()
    with ops.force_path("activation"):
        call(x, given, weight, None, path=None)
        call(x, given, weight, None, path="weight")
    call(x, given, weight, None, path=None)
    assert seen == ["activation", "weight", "auto"]


@pytest.mark.parametrize("attempt", ["context", "argument"])
def test_unknown_paths_are_refused(attempt):
    with pytest.raises(ValueError, match="unknown path 'fast'; known: auto, activation, weight, two_products"):
        if attempt == "context":
            with ops.force_path("fast"):
                pass
        else:
            given = operands((6, 10))
            call(torch.randn(3, 10).double(), given, torch.randn(6, 10).double(), None, "fast")


def two_layers(**settings) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12), nn.GELU(), nn.Linear(12, 12))
    inject_adapter(model, RandLoRAConfig(rank=5, **settings), targets=["0", "2", "4"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    for batch in batches:
        (model(batch).square().sum() / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance) -> None:
    assert first.keys() == second.keys() and len(first) > 0
    for name in first:
        assert first[name].abs().max() > 0
        torch.testing.assert_close(first[name], second[name], **tolerance)


@pytest.mark.parametrize("magnitude", [False, True])
def test_paths_agree_in_a_model(magnitude):
    model, x = two_layers(magnitude=magnitude), torch.randn(9, 12)
    results = []
    for path in PATHS:
        with ops.force_path(path):
            results.append(gradients(model, x))
    for first, second in itertools.pairwise(results):
        assert_same(first, second, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(path, reentrant):
    from torch.utils.checkpoint import checkpoint

    model, x = two_layers(), torch.randn(9, 12, requires_grad=True)
    with ops.force_path(path):
        expected = gradients(model, x)
        model.zero_grad()
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    actual = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    # A reentrant checkpoint computes the output without gradients first, for which "auto" may take another path.
    exact = path != "auto" or not reentrant
    assert_same(actual, expected, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}))


@pytest.mark.parametrize("settings", [{}, {"store_bases": False}, {"packed_bases": True, "basis": "sparse"}])
def test_checkpointing_keeps_no_activation(settings):
    """Within a checkpoint nothing is kept until the backward pass, whether bases are stored or made again."""
    from torch.utils.checkpoint import checkpoint

    model, x, alive = two_layers(**settings), torch.randn(9, 12, requires_grad=True), []
    model[3].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    expected = gradients(model, x)
    output = model(x)
    assert alive[1]() is not None  # kept by the adapted layer behind it
    output = checkpoint(model, x, use_reentrant=False)
    assert alive[2]() is None
    model.zero_grad()
    output.square().sum().backward()
    assert_same({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, expected)


@pytest.mark.parametrize("path", PATHS)
def test_accumulated_micro_batches_equal_the_batch(path):
    model, x = two_layers(), torch.randn(8, 12)
    with ops.force_path(path):
        whole = gradients(model, x)
        parts = gradients(model, x[:4], x[4:])
    assert_same({name: 2 * grad for name, grad in parts.items()}, whole, rtol=1e-4, atol=1e-5)


def test_copies_keep_computing_the_same():
    model, x = two_layers(), torch.randn(5, 12)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(twin.double()(x.double()), model(x).double(), rtol=1e-5, atol=1e-5)


def test_dropout_acts_on_the_update_only():
    model = two_layers(dropout=0.5)
    layer, x = model[0], torch.ones(4000, 12)
    torch.manual_seed(3)
    output = layer(x)
    kept = x.clone()
    torch.manual_seed(3)
    kept = F.dropout(kept, 0.5)
    expected = layer.base(x) + kept @ layer.update.delta_weight().T
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    layer.eval()
    expected = F.linear(x, layer.base.weight + layer.update.delta_weight(), layer.base.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reason", ["hook", "trained_weight", "own_forward"])
def test_a_base_layer_with_a_life_of_its_own_is_called(reason):
    model, x = two_layers(), torch.randn(5, 12)
    layer, calls = model[0], []
    if reason == "hook":
        layer.base.register_forward_hook(lambda module, args, output: calls.append(1))
    elif reason == "own_forward":
        forward = layer.base.forward
        layer.base.forward = lambda x: calls.append(1) or forward(x)
    else:
        layer.base.weight.requires_grad_()
        calls.append(1)
    layer(x).sum().backward()
    assert calls == [1]
    assert (layer.base.weight.grad is not None) == (reason == "trained_weight")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_compiled_whole_equals_eager(path, autocast):
    model, x = two_layers(), torch.randn(9, 12)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with ops.force_path(path), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(model, x)
        compiled(x).square().sum().backward()  # not zeroed: adds the same gradients once more
    actual = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if autocast else {"rtol": 1e-5, "atol": 1e-6}
    assert_same(actual, {name: 2 * grad for name, grad in expected.items()}, **tolerance)


def test_empty_batches():
    model = two_layers()
    output = model(torch.randn(0, 12, requires_grad=True))
    output.sum().backward()
    assert output.shape == (0, 12)
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("basis", ["uniform", "sparse"])
def test_stored_types_of_the_bases_do_not_matter(basis):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20))
    inject_adapter(model, RandLoRAConfig(rank=5, basis=basis), targets=["0"])
    layer, x = model[0], torch.randn(30, 12)
    with torch.no_grad():
        layer.update.randlora_lambda.normal_()
    expected = F.linear(x, layer.base.weight + layer.update.delta_weight(), layer.base.bias)
    for path in PATHS:
        with ops.force_path(path):
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
