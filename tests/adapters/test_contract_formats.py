"""What every method promises in every number format, on every device, in copies and when compiled."""

import copy
import pickle

import pytest
import torch
from contract_models import Network, adapted, config_of, every_combination, every_variant, inputs, perturb, plain
from torch import nn

from randlora_core import (
    adapter_parameters,
    count_parameters,
    inject_adapter,
    merge_adapter,
    unload_adapter,
    unmerge_adapter,
)
from randlora_core.adapters.state import adapter_bases, adapter_layers


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_in_storage_dtype(variant, dtype):
    """The merged weight is the float32 sum, rounded once; unmerging does not subtract it again."""
    model = plain("linear_wide").to(dtype)
    inject_adapter(model, config_of(variant), ("layer",))
    perturb(model)
    frozen = model.layer.base.weight.detach().clone()
    expected = model.layer.update.merged_weight(frozen.float()).to(dtype)
    merge_adapter(model)
    assert torch.equal(model.layer.base.weight, expected)
    assert not torch.equal(model.layer.base.weight, frozen)
    unmerge_adapter(model)
    assert torch.equal(model.layer.base.weight, frozen)


@every_variant
@pytest.mark.parametrize("kind", ["linear_tall", "conv1d_wide"])
def test_an_adapter_in_float32_works_on_a_bfloat16_model(kind, variant):
    model = perturb(inject_adapter(plain(kind).bfloat16(), config_of(variant), ("layer",)))
    assert all(parameter.dtype == torch.float32 for parameter in adapter_parameters(model))
    x = inputs(model, torch.bfloat16)
    output = model(x)
    assert output.dtype == torch.bfloat16
    reference = copy.deepcopy(model).float()
    # bfloat16 keeps 8 bits; the norm's output is of size 1 to 3.
    torch.testing.assert_close(output.float(), reference(x.float()), rtol=0.03, atol=0.06)
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter_parameters(model))


@every_variant
def test_a_model_cast_after_injection_works(variant):
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    bases = {rank: [b.clone() for b in shared.buffers()] for rank, shared in adapter_bases(model).items()}
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), expected, rtol=0.05, atol=0.1)
    torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    for rank, shared in adapter_bases(model).items():
        assert all(torch.equal(a, b) for a, b in zip(shared.buffers(), bases[rank], strict=True))


@every_variant
def test_autocast(variant):
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        layer_output = model.layer(x)
    assert layer_output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.1)
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in adapter_parameters(model))


@every_variant
def test_autocast_leaves_float64_alone(variant):
    model = perturb(adapted("linear_tall", variant)).double()
    x = inputs(model, torch.float64)
    expected = model.layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.layer(x), expected, rtol=1e-9, atol=1e-9)


@every_variant
def test_meta_device(variant):
    with torch.device("meta"):
        model = Network(nn.Linear(11, 17))
    inject_adapter(model, config_of(variant), ("layer",))
    assert all(parameter.is_meta for parameter in adapter_parameters(model))
    assert all(buffer.is_meta for shared in adapter_bases(model).values() for buffer in shared.buffers())
    assert count_parameters(model).per_layer == count_parameters(adapted("linear_tall", variant)).per_layer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_variant
def test_device_moves(variant):
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    model.cuda()
    assert all(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers()))
    torch.testing.assert_close(model(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    injected = inject_adapter(plain("linear_tall").cuda(), config_of(variant), ("layer",))
    assert all(tensor.is_cuda for tensor in (*injected.parameters(), *injected.buffers()))
    assert torch.equal(model.cpu()(x), expected)


@every_combination
@every_variant
def test_copies_answer_alike_and_share_nothing(kind, variant):
    model = perturb(adapted(kind, variant))
    x = inputs(model)
    expected = model(x)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(x), expected)
        with torch.no_grad():
            for parameter in adapter_parameters(duplicate):
                parameter.zero_()
        assert torch.equal(model(x), expected)
        unload_adapter(duplicate)
        assert not adapter_layers(duplicate) and adapter_layers(model)


@every_variant
def test_bases_are_one_copy_that_the_state_dict_leaves_out(variant):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, 17), nn.ReLU(), nn.Linear(17, 11), nn.Linear(11, 11))
    inject_adapter(model, config_of(variant), "all-linear")
    for duplicate in (model, copy.deepcopy(model), copy.deepcopy(model).double(), pickle.loads(pickle.dumps(model))):
        updates = [layer.update for layer in adapter_layers(duplicate).values()]
        bases = {id(update.bases): update.bases for update in updates if hasattr(update, "bases")}
        assert len(bases) == len(adapter_bases(duplicate)) <= 1
        shared = [buffer for b in bases.values() for buffer in b.buffers()]
        assert len(list(duplicate.buffers())) == len(shared)
        assert all(buffer.element_size() <= 2 for buffer in shared)
        assert duplicate.state_dict().keys() == dict(duplicate.named_parameters()).keys()


@every_variant
def test_compile_aot_eager(variant):
    torch._dynamo.reset()
    model = perturb(adapted("linear_tall", variant))
    x = inputs(model)
    expected = model(x)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in adapter_parameters(model)]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    output = compiled(x)
    output.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(adapter_parameters(model), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compile_inductor():
    torch._dynamo.reset()
    model = perturb(adapted("linear_tall", "randlora"))
    x = inputs(model)
    torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-4)
