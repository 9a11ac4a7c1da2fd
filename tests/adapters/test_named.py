"""Several adapters on one model, each against a model that has only that one."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from randlora_core import (
    DoRAConfig,
    LoRAConfig,
    NoLAConfig,
    RandLoRAConfig,
    VeRAConfig,
    adapter_names,
    adapter_parameters,
    add_adapter,
    count_parameters,
    delete_adapter,
    disable_adapter,
    inject_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    set_adapter,
    unload_adapter,
    unmerge_adapter,
    use_adapters,
)
from randlora_core.adapters.bases import SharedBases
from randlora_core.adapters.state import adapter_bases, adapter_layers, all_adapter_layers

CONFIGS = {
    "default": RandLoRAConfig(rank=4, seed=3),
    "same_seed": RandLoRAConfig(rank=4, seed=3, alpha=40.0, scale_by_sqrt_bases=True),
    "magnitude": RandLoRAConfig(rank=4, seed=3, magnitude=True),
    "other_seed": RandLoRAConfig(rank=4, seed=4),
    "other_basis": RandLoRAConfig(rank=4, seed=3, basis="sparse"),
    "blocks": RandLoRAConfig(rank=4, seed=3, groups=2),
    "lora": LoRAConfig(rank=2),
    "dora": DoRAConfig(rank=2),
    "vera": VeRAConfig(rank=5),
    "nola": NoLAConfig(rank=2, num_bases_a=3, num_bases_b=4),
}
TARGETS = {"dora": ("in_proj", "c_fc"), "vera": ("c_proj", "head"), "other_basis": ("c_fc",)}
WIDE = ("in_proj", "out_proj", "c_fc", "c_proj")


class Block(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.c_fc = nn.Linear(8, 20)
        self.c_proj = nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.c_proj(self.c_fc(x).relu())


def plain(batch_first: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("one", Block(batch_first))
    model.add_module("two", Block(batch_first))
    model.add_module("head", nn.Linear(8, 6))
    return model


def perturb(model: nn.Module, name: str) -> None:
    generator = torch.Generator().manual_seed(sorted(CONFIGS).index(name))
    with torch.no_grad():
        for layer in all_adapter_layers(model).values():
            if name in layer.updates:
                for parameter in layer.updates[name].parameters():
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def alone(name: str, batch_first: bool = True) -> nn.Module:
    model = inject_adapter(plain(batch_first), CONFIGS[name], TARGETS.get(name, WIDE))
    perturb_default(model, name)
    return model


def perturb_default(model: nn.Module, name: str) -> None:
    generator = torch.Generator().manual_seed(sorted(CONFIGS).index(name))
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            for parameter in layer.update.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def together(batch_first: bool = True) -> nn.Module:
    model = inject_adapter(plain(batch_first), CONFIGS["default"], WIDE)
    for name in list(CONFIGS)[1:]:
        assert add_adapter(model, CONFIGS[name], name, TARGETS.get(name)) is model
    for name in CONFIGS:
        perturb(model, name)
    return model


def inputs(rows: int = 4) -> Tensor:
    return torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(9))


def stored(model: nn.Module) -> list[SharedBases]:
    return [module for module in model.modules() if isinstance(module, SharedBases)]


def test_each_acts_as_it_does_alone_and_weights_and_matrices_are_shared():
    model, x = together(), inputs()
    assert adapter_names(model) == tuple(CONFIGS)
    outputs = {}
    for name in CONFIGS:
        set_adapter(model, name)
        single = alone(name)
        outputs[name] = model(x)
        torch.testing.assert_close(outputs[name], single(x), rtol=1e-6, atol=1e-6)
        assert count_parameters(model).trainable == count_parameters(single).trainable
        assert count_parameters(model).per_layer == count_parameters(single).per_layer
        assert [p.shape for p in adapter_parameters(model)] == [p.shape for p in adapter_parameters(single)]
        trained = {id(p) for p in adapter_parameters(model)}
        assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    names = list(CONFIGS)
    for i, name in enumerate(names):
        assert all((outputs[name] - outputs[other]).abs().max() > 1e-3 for other in names[:i])
    base_parameters = sum(p.numel() for n, p in model.named_parameters() if ".updates." not in n)
    assert base_parameters == count_parameters(plain()).total
    bases = {name: adapter_bases(model, name) for name in CONFIGS}
    assert bases["default"][4] is bases["same_seed"][4] is bases["magnitude"][4]
    # default's, another seed, another distribution, blocks, VeRA's and NoLA's
    assert len(stored(model)) == 6


def test_a_second_adapter_is_inert_until_it_is_chosen():
    model, x = alone("default"), inputs()
    expected, trained = model(x), count_parameters(model).trainable
    add_adapter(model, CONFIGS["lora"], "lora")
    perturb(model, "lora")
    assert torch.equal(model(x), expected)
    assert count_parameters(model).trainable == trained
    model(x).square().sum().backward()
    assert all(layer.updates["lora"].lora_A.grad is None for layer in all_adapter_layers(model).values())


def test_matrices_that_are_too_small_are_not_used():
    model = inject_adapter(plain(), RandLoRAConfig(rank=4), ("head",))
    add_adapter(model, RandLoRAConfig(rank=4), "wide", WIDE)
    add_adapter(model, RandLoRAConfig(rank=4), "narrow", ("c_proj",))
    small, large, narrow = (adapter_bases(model, name)[4] for name in ("default", "wide", "narrow"))
    assert small is not large and narrow is large
    single = inject_adapter(plain(), RandLoRAConfig(rank=4), ("c_proj",))
    perturb_default(single, "lora")
    set_adapter(model, "narrow")
    perturb_default(model, "lora")
    assert torch.equal(model(inputs()), single(inputs()))


def test_training_the_chosen_one_leaves_the_others():
    model, x = together(), inputs()
    set_adapter(model, "same_seed")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.SGD(adapter_parameters(model), lr=0.1)
    model(x).square().sum().backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".updates.same_seed." in name), name


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_rows_of_a_batch_through_different_adapters(batch_first, training):
    model = together(batch_first).train(training)
    names = ("lora", None, "default", "dora", "lora", "vera", "other_basis", None, "nola", "magnitude")
    x = inputs(len(names))
    x = x if batch_first else x.transpose(0, 1).contiguous()
    rows = 0 if batch_first else 1
    set_adapter(model, "other_seed")
    with use_adapters(model, names, batch_axis=rows):
        mixed = model(x)
        with disable_adapter(model):
            base = model(x)
    reference = plain(batch_first).train(training)
    torch.testing.assert_close(base, reference(x), rtol=1e-5, atol=1e-5)
    for row, name in enumerate(names):
        single = reference if name is None else alone(name, batch_first).train(training)
        torch.testing.assert_close(mixed.select(rows, row), single(x).select(rows, row), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), alone("other_seed", batch_first).train(training)(x), rtol=1e-5, atol=1e-5)


def test_nested_mixtures_and_compiled_ones():
    model, x = together(), inputs(3)
    expected = {name: alone(name)(x) for name in ("lora", "default", "dora")}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with use_adapters(model, ["lora", "default", "lora"]):
        with use_adapters(model, ["dora"] * 3):
            torch.testing.assert_close(model(x), expected["dora"], rtol=1e-5, atol=1e-5)
        mixed = compiled(x)
    for row, name in enumerate(["lora", "default", "lora"]):
        torch.testing.assert_close(mixed[row], expected[name][row], rtol=1e-5, atol=1e-5)


def test_an_addition_can_open_attention_modules():
    model = inject_adapter(plain(), CONFIGS["lora"], ("c_fc",))
    add_adapter(model, CONFIGS["default"], "more", ("in_proj", "out_proj"))
    set_adapter(model, "more")
    reference = inject_adapter(plain(), CONFIGS["default"], ("in_proj", "out_proj"))
    for each in (model, reference):
        perturb_default(each, "nola")
    torch.testing.assert_close(model(inputs()), reference(inputs()), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(model(inputs()), plain()(inputs()), atol=1e-2)
    assert unload_adapter(model).state_dict().keys() == plain().state_dict().keys()


def test_rows_that_do_not_fit_are_refused():
    model = together()
    with use_adapters(model, ["lora"] * 3), pytest.raises(ValueError, match=r"3 adapter names for an input .* 4 rows"):
        model(inputs())
    with pytest.raises(ValueError, match=r"unknown adapter 'Lora' .did you mean lora"), use_adapters(model, ["Lora"]):
        pass
    with pytest.raises(ValueError, match=r"batch_first=False.* give batch_axis"):
        use_adapters(together(batch_first=False), ["lora"]).__enter__()
    expected = alone("default")(inputs())
    torch.testing.assert_close(model(inputs()), expected, rtol=1e-6, atol=1e-6)


def test_merging_is_about_the_active_one():
    model, x = together(), inputs()
    set_adapter(model, "dora")
    expected = model(x)
    merge_adapter(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    for refused in (
        lambda: set_adapter(model, "lora"),
        lambda: add_adapter(model, CONFIGS["lora"], "more"),
        lambda: use_adapters(model, ["lora"]).__enter__(),
    ):
        with pytest.raises(ValueError, match="merged"):
            refused()
    unmerge_adapter(model)
    set_adapter(model, "lora")
    torch.testing.assert_close(model(x), alone("lora")(x), rtol=1e-6, atol=1e-6)
    reference = plain()
    with disable_adapter(model):
        torch.testing.assert_close(model(x), reference(x), rtol=1e-6, atol=1e-6)
    unload_adapter(model)
    assert torch.equal(model(x), reference(x))
    assert model.state_dict().keys() == reference.state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_copies():
    model = together()
    set_adapter(model, "vera")
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(inputs()), model(inputs()))
        assert len(stored(duplicate)) == 6
        assert adapter_names(duplicate) == tuple(CONFIGS)


def test_delete():
    model, x = together(), inputs()
    with pytest.raises(ValueError, match="'default' is the active adapter"):
        delete_adapter(model, "default")
    set_adapter(model, "lora")
    for name in [name for name in CONFIGS if name != "lora"]:
        delete_adapter(model, name)
    assert adapter_names(model) == ("lora",) and not stored(model)
    assert "head" not in all_adapter_layers(model)
    torch.testing.assert_close(model(x), alone("lora")(x), rtol=1e-6, atol=1e-6)
    assert all(parameter.requires_grad for parameter in unload_adapter(model).parameters())


@pytest.mark.parametrize(
    ("name", "config", "targets", "message"),
    [
        ("default", LoRAConfig(rank=2), None, "there is an adapter 'default' already"),
        ("a.b", LoRAConfig(rank=2), None, "without dots"),
        ("", LoRAConfig(rank=2), None, "non-empty"),
        ("more", LoRAConfig(rank=2), ("c_fk",), "matches no layer .did you mean c_fc"),
        ("more", RandLoRAConfig(rank=9), None, "above the smaller side"),
        ("more", LoRAConfig(rank=2), ("base",), "matches no layer"),
        ("more", LoRAConfig(rank=2), ("head",), "its own weight trains"),
    ],
)
def test_bad_additions_leave_the_model_as_it_was(name, config, targets, message):
    model = inject_adapter(plain(), CONFIGS["default"], WIDE, trainable=("head",))
    before = str(model), model.state_dict()
    with pytest.raises(ValueError, match=message):
        add_adapter(model, config, name, targets)
    assert (str(model), model.state_dict().keys()) == (before[0], before[1].keys())


def test_a_first_adapter_can_have_a_name(tmp_path):
    save_adapter(alone("vera"), tmp_path)
    model = load_adapter(plain(), tmp_path, name="loaded")
    assert adapter_names(model) == ("loaded",)
    torch.testing.assert_close(model(inputs()), alone("vera")(inputs()), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="without dots"):
        load_adapter(plain(), tmp_path, name="a.b")


def test_models_without_adapters_are_refused():
    for call in (set_adapter, delete_adapter, lambda m, n: add_adapter(m, CONFIGS["lora"], n)):
        with pytest.raises(ValueError, match="has no adapter; call inject_adapter first"):
            call(plain(), "lora")


@pytest.mark.parametrize("name", CONFIGS)
def test_files_hold_one_adapter_and_do_not_depend_on_the_others(name, tmp_path):
    model, x = together(), inputs()
    save_adapter(model, tmp_path / "beside", name=name)
    save_adapter(alone(name), tmp_path / "alone")
    files = [(tmp_path / way / "adapter_config.json").read_text() for way in ("beside", "alone")]
    assert files[0].splitlines()[:-2] == files[1].splitlines()[:-2]
    loaded = load_adapter(plain(), tmp_path / "beside")
    set_adapter(model, name)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-6, atol=1e-6)
    host = alone("lora")
    load_adapter(host, tmp_path / "alone", name="loaded")
    torch.testing.assert_close(host(x), alone("lora")(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(set_adapter(host, "loaded")(x), alone(name)(x), rtol=1e-6, atol=1e-6)


def test_hot_swap_without_compiling_again(tmp_path):
    other = alone("default")
    perturb_default(other, "nola")
    save_adapter(other, tmp_path)
    model, x = together(), inputs()
    reference = alone("default")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), reference(x), rtol=1e-5, atol=1e-5)
        compilations = counter.frame_count
        assert compilations >= 1
        load_adapter(model, tmp_path, name="default")
        torch.testing.assert_close(compiled(x), other(x), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(other(x), reference(x), atol=1e-2)
        assert counter.frame_count == compilations


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("same_seed", "scale_by_sqrt_bases=True for False"),
        ("other_seed", "seed=4 for 3"),
        ("lora", "settings are not those of the adapter 'default'"),
        ("dora", "its layers are not those of the adapter 'default'"),
    ],
)
def test_a_swap_that_would_mean_something_else_is_refused(name, message, tmp_path):
    save_adapter(alone(name), tmp_path)
    model, x = together(), inputs()
    expected = model(x)
    with pytest.raises(ValueError, match=message) as error:
        load_adapter(model, tmp_path, name="default")
    assert str(error.value).startswith(str(tmp_path / "adapter_config.json"))
    assert torch.equal(model(x), expected)


def test_a_swap_to_another_dtype_is_refused(tmp_path):
    save_adapter(alone("default").double(), tmp_path)
    with pytest.raises(ValueError, match=r"is torch.float64, and torch.float32 in the model"):
        load_adapter(together(), tmp_path, name="default")


def test_own_parameters_are_shared_and_never_overwritten(tmp_path):
    model = inject_adapter(plain(), CONFIGS["default"], WIDE, trainable=("head",))
    add_adapter(model, CONFIGS["lora"], "lora")
    assert model.head.weight.requires_grad
    set_adapter(model, "lora")
    assert model.head.weight.requires_grad
    save_adapter(model, tmp_path, name="lora")
    load_adapter(model, tmp_path, name="again")
    with torch.no_grad():
        model.head.weight.add_(1)
    for name in ("lora", "more"):
        with pytest.raises(ValueError, match=r"'head.weight' has other values than the model"):
            load_adapter(model, tmp_path, name=name)
    with pytest.raises(ValueError, match=r"trainable is \('head.weight', 'head.bias'\), and \(\) in the model"):
        load_adapter(alone("default"), tmp_path, name="lora")
