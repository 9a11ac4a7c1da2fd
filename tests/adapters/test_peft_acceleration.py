"""PEFT models through our computation: same outputs, gradients, training and checkpoints."""

import copy
import pickle

import peft
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from safetensors.torch import load_file
from test_peft_trainer import trainer
from tiny_models import ARCHITECTURES, batch, logits, moved, targets_of, tiny_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from randlora_core import RandLoRAConfig, accelerate_peft, export_peft, inject_adapter, ops

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning")]


def peft_model(architecture: str = "qwen2", **settings) -> nn.Module:
    torch.manual_seed(0)
    config = peft.RandLoraConfig(
        r=5, randlora_alpha=100, target_modules=list(targets_of(architecture)), **({"randlora_dropout": 0.0} | settings)
    )
    model = peft.get_peft_model(tiny_model(architecture), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "randlora_lambda" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def outputs_and_gradients(model: nn.Module, architecture: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model.eval()(**batch(architecture)).logits
    output.square().mean().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def entered(monkeypatch):
    """How often our computation was entered."""
    calls, entry = [], ops.randlora_linear
    monkeypatch.setattr(ops, "randlora_linear", lambda *args, **kwargs: calls.append(1) or entry(*args, **kwargs))
    return calls


@pytest.mark.parametrize("path", ops.PATHS)
@pytest.mark.parametrize("settings", [{}, {"sparse": True}], ids=["uniform", "sparse"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_and_gradients_are_pefts(architecture, settings, path, entered):
    model = peft_model(architecture, **settings)
    expected, expected_grads = outputs_and_gradients(model, architecture)
    with ops.force_path(path):
        output, grads = outputs_and_gradients(accelerate_peft(model), architecture)
    layers = sum(hasattr(module, "randlora_lambda") for module in model.modules())
    assert len(entered) == layers > 0
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-6)


def test_parameters_and_checkpoints_stay_pefts(tmp_path):
    model = peft_model()
    model.save_pretrained(tmp_path / "before")
    names = {name: (p.shape, p.requires_grad) for name, p in model.named_parameters()}
    keys = list(model.state_dict())
    assert accelerate_peft(model) is model
    model.save_pretrained(tmp_path / "after")
    assert {name: (p.shape, p.requires_grad) for name, p in model.named_parameters()} == names
    assert list(model.state_dict()) == keys
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes()
    loaded = accelerate_peft(peft.PeftModel.from_pretrained(tiny_model("qwen2"), tmp_path / "after"))
    torch.testing.assert_close(logits(loaded, "qwen2"), logits(model, "qwen2"))


def test_a_trainer_run_ends_where_pefts_does(tmp_path, entered):
    plain, fast = peft_model(), accelerate_peft(peft_model())
    start = logits(plain, "qwen2")
    trainer(plain, tmp_path / "plain", save_strategy="steps", save_steps=6).train()
    assert not entered
    trainer(fast, tmp_path / "fast", save_strategy="steps", save_steps=6).train()
    assert entered
    expected = logits(plain, "qwen2")
    assert (expected - start).abs().max() > 0.05
    torch.testing.assert_close(logits(fast, "qwen2"), expected, rtol=1e-2, atol=2e-3)
    saved = [load_file(tmp_path / kind / "checkpoint-6" / "adapter_model.safetensors") for kind in ("plain", "fast")]
    assert saved[0].keys() == saved[1].keys()


def test_merging_disabling_copies_and_further_adapters(entered):
    model = accelerate_peft(peft_model())
    expected = logits(model, "qwen2")
    with model.disable_adapter():
        assert not torch.allclose(logits(model, "qwen2"), expected, atol=1e-3)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "randlora_lambda" in name:
                parameter.zero_()
    assert not torch.allclose(logits(twin, "qwen2"), expected, atol=1e-3)
    torch.testing.assert_close(logits(model, "qwen2"), expected, rtol=0, atol=0)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, "qwen2"), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    model.add_adapter("second", peft.RandLoraConfig(r=5, target_modules=list(targets_of("qwen2"))))
    model.set_adapter("second")
    entered.clear()
    assert not torch.allclose(logits(model, "qwen2"), expected, atol=1e-3)
    assert entered


def test_pickled_models_keep_computing_here(entered):
    model = accelerate_peft(peft_model())
    expected = logits(model, "qwen2")
    entered.clear()
    twin = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(logits(twin, "qwen2"), expected, rtol=0, atol=0)
    assert entered
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(logits(model, "qwen2"), expected, rtol=0, atol=0)


def test_bf16_autocast_is_pefts():
    results = []
    for model in (peft_model(), accelerate_peft(peft_model())):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(outputs_and_gradients(model, "qwen2"))
    (expected, expected_grads), (output, grads) = results
    assert output.dtype == expected.dtype and (output - expected).norm() < 0.02 * expected.norm()
    for name, grad in expected_grads.items():
        assert (grads[name] - grad).norm() < 0.05 * grad.norm()


def test_hooks_of_accelerate_stay(entered):
    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Counting.calls += 1
            return args, kwargs

    model = peft_model()
    expected = logits(model, "qwen2")
    layers = [module for module in model.modules() if hasattr(module, "randlora_lambda")]
    for layer in layers:
        add_hook_to_module(layer, Counting())
    for again in range(2):
        accelerate_peft(model)  # a second time changes nothing
        entered.clear()
        torch.testing.assert_close(logits(model, "qwen2"), expected, rtol=1e-4, atol=1e-5)
        assert Counting.calls == (again + 1) * len(layers) and len(entered) == len(layers)
    for layer in layers:
        remove_hook_from_module(layer)
    entered.clear()
    logits(model, "qwen2")
    assert len(entered) == len(layers)


def test_a_layer_with_another_forward_is_refused_and_nothing_changed():
    model = peft_model()
    *_, (name, last) = ((n, module) for n, module in model.named_modules() if hasattr(module, "randlora_lambda"))
    last.forward = print
    with pytest.raises(ValueError, match=rf"layer '{name}' has a forward of its own"):
        accelerate_peft(model)
    assert sum("forward" in vars(module) for module in model.modules()) == 1


def test_dropout_is_pefts():
    plain, fast = peft_model(randlora_dropout=0.3).train(), accelerate_peft(peft_model(randlora_dropout=0.3)).train()
    results = []
    for model in (plain, fast):
        torch.manual_seed(5)
        results.append(model(**batch("qwen2")).logits.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(fast, "qwen2"), results[1], atol=1e-3)  # no dropout in evaluation


def test_models_without_pefts_randlora_are_refused():
    with pytest.raises(ValueError, match="Linear has no RandLoRA layers"):
        accelerate_peft(nn.Linear(2, 2))


@pytest.mark.parametrize("wanted", ["one", "all"])
def test_second_derivatives_are_pefts_or_refused(wanted):
    """PEFT's own computation tells which are not zero; alone, and beside a term that would hide a missing one."""
    model = peft_model("vit").eval()
    pixels = batch("vit")["pixel_values"].requires_grad_()
    trained = [p for name, p in model.named_parameters() if "randlora_" in name and p.requires_grad]
    leaves = trained if wanted == "all" else trained[1:2]

    def first_derivative() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivatives either
            loss = model(pixel_values=pixels).logits.sum()
        (gradient,) = torch.autograd.grad(loss, pixels, create_graph=True)
        return gradient.square().sum()

    expected = torch.autograd.grad(first_derivative(), leaves)
    assert all(gradient.abs().max() > 0 for gradient in expected)
    accelerate_peft(model)
    for extra in (0.0, sum(leaf.square().sum() for leaf in leaves)):
        value = first_derivative() + extra
        for form in (
            lambda value=value: torch.autograd.grad(value, leaves, retain_graph=True),
            lambda value=value: torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True),
            lambda value=value: value.backward(inputs=leaves, retain_graph=True),
            lambda value=value: value.backward(retain_graph=True),
        ):
            with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*accelerate_peft"):
                form()
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.filterwarnings("ignore:PEFT knows no bases in groups")
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(("rank", "groups"), [(3, 3), (4, 2)])
def test_exported_groups_are_multiplied_by_as_blocks(rank, groups, tmp_path, monkeypatch):
    """Same outputs and gradients as PEFT's, by blocks; other values in the same tensors are looked at again."""
    ours = inject_adapter(tiny_model("qwen2"), RandLoRAConfig(rank=rank, groups=groups), targets_of("qwen2"))
    export_peft(moved(ours), tmp_path)
    model = peft.PeftModel.from_pretrained(tiny_model("qwen2"), tmp_path, is_trainable=True)
    expected, expected_grads = outputs_and_gradients(model, "qwen2")
    rows, entry = set(), ops.randlora_linear

    def watched(x, lambda_, gamma, a, b, *rest, **named):
        rows.add((len(a), b.shape[2]))
        return entry(x, lambda_, gamma, a, b, *rest, **named)

    monkeypatch.setattr(ops, "randlora_linear", watched)
    for _ in range(2):
        output, grads = outputs_and_gradients(accelerate_peft(model), "qwen2")
        assert rows == {(rank // groups, rank // groups)}
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        for name, grad in expected_grads.items():
            assert grad.abs().max() > 0
            torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        model.base_model.randlora_A["default"].fill_(0.5)
        for module in model.modules():
            if hasattr(module, "randlora_A"):
                module.randlora_A["default"].fill_(0.5)
    rows.clear()
    logits(copy.deepcopy(model), "qwen2")
    assert rows == {(rank, rank)}
