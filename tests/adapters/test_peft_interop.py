"""Adapters between this library and PEFT: every method on every architecture, in both directions."""

import json

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, logits, moved, num_trainable, targets_of, tiny_model

from randlora_core import (
    adapter_parameters,
    count_parameters,
    disable_adapter,
    export_peft,
    import_peft,
    inject_adapter,
    load_adapter,
    make_config,
    merge_adapter,
    save_adapter,
)
from randlora_core.adapters.state import adapter_bases, adapter_layers, adapter_state

# rtol of float32 products in another order, on logits of about 1.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}

# PEFT writes its shared matrices per module, too, and says that a file lacks those copies; it uses the ones it has.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Found missing adapter keys"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
    pytest.mark.filterwarnings("ignore:PEFT knows no bases in groups"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

OURS = {
    "randlora": ("randlora", {}),
    "randlora_ternary": ("randlora", {"basis": "sparse", "scale_by_sqrt_bases": True, "alpha": 7.5}),
    "randlora_normal": ("randlora", {"basis": "normal", "init": "gamma_zero"}),
    "randlora_packed": ("randlora", {"basis": "ternary", "sparsity": 4.5, "packed_bases": True}),
    "randlora_recomputed": ("randlora", {"store_bases": False, "scale_by_sqrt_bases": True}),
    "randlora_blocks": ("randlora", {"rank": 3, "groups": "max"}),  # 3 groups, one row of A in each
    "randlora_blocks_of_two": ("randlora", {"rank": 4, "groups": 2, "scale_by_sqrt_bases": True, "alpha": 7.5}),
    "lora": ("lora", {}),
    "rslora": ("lora", {"rank_stabilized": True}),
    "dora": ("dora", {}),
    "vera": ("vera", {"rank": 11, "d_initial": 0.4}),
}
THEIRS = {
    "randlora": lambda targets: peft.RandLoraConfig(r=5, randlora_alpha=100, target_modules=targets),
    "randlora_sparse": lambda targets: peft.RandLoraConfig(r=5, randlora_alpha=30, sparse=True, target_modules=targets),
    "randlora_very_sparse": lambda targets: peft.RandLoraConfig(r=5, very_sparse=True, target_modules=targets),
    "lora": lambda targets: peft.LoraConfig(r=5, lora_alpha=9, lora_dropout=0.1, target_modules=targets),
    "rslora": lambda targets: peft.LoraConfig(r=5, lora_alpha=9, use_rslora=True, target_modules=targets),
    "dora": lambda targets: peft.LoraConfig(r=5, lora_alpha=9, use_dora=True, target_modules=targets),
    "dora_rslora": lambda targets: peft.LoraConfig(r=5, use_dora=True, use_rslora=True, target_modules=targets),
    "vera": lambda targets: peft.VeraConfig(r=11, d_initial=0.4, target_modules=targets),
}


def ours(architecture: str, variant: str = "randlora", trainable=(), **fields):
    method, settings = OURS[variant]
    config = make_config(method, **{"rank": 5, **settings, **fields})
    model = inject_adapter(tiny_model(architecture), config, targets_of(architecture), trainable=trainable)
    return moved(model)


def theirs(architecture: str, variant: str = "randlora", **changes):
    config = THEIRS[variant](list(targets_of(architecture)))
    for name, value in changes.items():
        setattr(config, name, value)
    return moved(peft.get_peft_model(tiny_model(architecture), config))


def opened(architecture: str, directory):
    return peft.PeftModel.from_pretrained(tiny_model(architecture), directory, is_trainable=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", OURS)
def test_what_we_export_peft_opens(variant, architecture, tmp_path):
    model = ours(architecture, variant)
    expected = logits(model, architecture)
    assert not torch.allclose(expected, logits(tiny_model(architecture), architecture), atol=1e-2)
    kept = export_peft(model, tmp_path)
    loaded = opened(architecture, tmp_path)
    torch.testing.assert_close(logits(loaded, architecture), expected, **CLOSE)
    assert num_trainable(loaded) == count_parameters(model).trainable
    assert kept == dict.fromkeys(adapter_state(model).shapes, 1.0)
    assert torch.equal(logits(model, architecture), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", THEIRS)
def test_what_peft_saves_we_import(variant, architecture, tmp_path):
    model = theirs(architecture, variant)
    expected = logits(model, architecture)
    model.save_pretrained(tmp_path)
    imported = import_peft(tiny_model(architecture), tmp_path)
    torch.testing.assert_close(logits(imported, architecture), expected, **CLOSE)
    assert not torch.allclose(expected, logits(tiny_model(architecture), architecture), atol=1e-2)
    assert count_parameters(imported).trainable == num_trainable(model)
    with disable_adapter(imported):
        assert torch.equal(logits(imported, architecture), logits(tiny_model(architecture), architecture))


@pytest.mark.parametrize("variant", ["randlora", "randlora_sparse", "dora", "vera"])
def test_an_imported_adapter_saves_loads_and_exports(variant, tmp_path):
    model = theirs("gpt2", variant)
    model.save_pretrained(tmp_path / "peft")
    imported = load_adapter(tiny_model("gpt2"), tmp_path / "peft")
    expected = logits(imported, "gpt2")
    save_adapter(imported, tmp_path / "own")
    again = load_adapter(tiny_model("gpt2"), tmp_path / "own")
    assert torch.equal(logits(again, "gpt2"), expected)
    export_peft(again, tmp_path / "exported")
    torch.testing.assert_close(logits(opened("gpt2", tmp_path / "exported"), "gpt2"), logits(model, "gpt2"), **CLOSE)
    merge_adapter(again)
    torch.testing.assert_close(logits(again, "gpt2"), expected, **CLOSE)


def test_imported_bases_are_kept_once_and_narrow(tmp_path):
    """Ternary ones as signs and one factor; PEFT draws the others in bfloat16, so that bfloat16 holds them."""
    for variant, dtype in (("randlora", torch.bfloat16), ("randlora_sparse", torch.int8), ("vera", torch.float32)):
        model = theirs("qwen2", variant)
        model.save_pretrained(tmp_path / variant)
        imported = import_peft(tiny_model("qwen2"), tmp_path / variant)
        (bases,) = adapter_bases(imported).values()
        source = model.base_model.vera_A if variant == "vera" else model.base_model.randlora_A
        original = source["default"].reshape(bases.A.shape[0], -1)[:, : bases.A.shape[1]]
        assert bases.A.dtype == bases.B.dtype == dtype
        assert torch.equal(bases.A.float() * bases.units["A"], original)
        save_adapter(imported, tmp_path / f"{variant}_own")
        tensors = load_file(tmp_path / f"{variant}_own" / "adapter_model.safetensors")
        rank = adapter_state(imported).config.rank
        stored = {name: tensor for name, tensor in tensors.items() if name.startswith("bases/")}
        assert stored.keys() == {f"bases/{rank}/A", f"bases/{rank}/B"}
        assert all(tensor.dtype == dtype for tensor in stored.values())
        assert adapter_state(imported).config.basis == "imported"


def test_both_layouts_of_the_shared_matrices_are_read(tmp_path):
    model = theirs("llama")
    model.save_pretrained(tmp_path)
    expected = logits(import_peft(tiny_model("llama"), tmp_path), "llama")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    copies = [name for name in tensors if name.startswith("base_model.model.") and name.endswith(("_A", "_B"))]
    assert len(copies) == 2 * 6  # PEFT 0.21.2 writes a copy per module beside the one of the model
    save_file({name: tensor for name, tensor in tensors.items() if name not in copies}, path)
    assert torch.equal(logits(import_peft(tiny_model("llama"), tmp_path), "llama"), expected)
    only = {name: t for name, t in tensors.items() if not name.startswith("base_model.randlora_")}
    save_file(only, path)
    assert torch.equal(logits(import_peft(tiny_model("llama"), tmp_path), "llama"), expected)
    only[copies[0]] = only[copies[0]] + 1
    save_file(only, path)
    with pytest.raises(ValueError, match="must be copies of one matrix, and differ"):
        import_peft(tiny_model("llama"), tmp_path)


def test_exported_bases_have_pefts_sizes_once_and_zeros_outside(tmp_path):
    model = ours("qwen2", basis="sparse")
    export_peft(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(name for name in tensors if "randlora_A" in name or "randlora_B" in name) == [
        "base_model.randlora_A",
        "base_model.randlora_B",
    ]
    # Targets (24, 24), (12, 24), (24, 40): M = 40, m = 24, though 24 wide layers need no more than that here.
    a, b = tensors["base_model.randlora_A"], tensors["base_model.randlora_B"]
    assert (a.shape, b.shape) == ((5, 1, 24), (40, 5, 5))
    (bases,) = adapter_bases(model).values()
    assert torch.equal(a[:, 0], (bases.A.double() * bases.units["A"]).float())

    mixed = inject_adapter(
        torch.nn.ModuleDict({"a": torch.nn.Linear(6, 30), "b": torch.nn.Linear(30, 6)}),
        make_config("randlora", rank=4),
        ("a", "b"),
    )
    export_peft(mixed, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = tensors["base_model.randlora_A"], tensors["base_model.randlora_B"]
    assert (a.shape, b.shape) == ((4, 1, 30), (30, 8, 4))  # PEFT sizes both by 30
    assert a[:, :, :6].all() and not a[:, :, 6:].any() and b[:, :2].all() and not b[:, 2:].any()


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_patterns_of_ranks_and_alphas(variant, tmp_path):
    fields = {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, r".*v_proj": 7},
        "alpha_pattern": {r"model\.layers\.0\..*": 3.5},
    }
    model = ours("qwen2", variant, **fields)
    export_peft(model, tmp_path)
    loaded = opened("qwen2", tmp_path)
    torch.testing.assert_close(logits(loaded, "qwen2"), logits(model, "qwen2"), **CLOSE)
    assert num_trainable(loaded) == count_parameters(model).trainable
    imported = import_peft(tiny_model("qwen2"), tmp_path)
    torch.testing.assert_close(logits(imported, "qwen2"), logits(model, "qwen2"), **CLOSE)


def test_pefts_own_patterns(tmp_path):
    patterns = {"rank_pattern": {"v_proj": 3, "^model.layers.0.mlp.down_proj": 7}, "alpha_pattern": {"1.mlp.*": 40}}
    model = theirs("qwen2", "lora", **patterns)
    model.save_pretrained(tmp_path)
    imported = import_peft(tiny_model("qwen2"), tmp_path)
    torch.testing.assert_close(logits(imported, "qwen2"), logits(model, "qwen2"), **CLOSE)
    ranks = {name: layer.lora_A.shape[0] for name, layer in _updates(imported).items()}
    assert ranks["model.layers.0.mlp.down_proj"] == 7 and ranks["model.layers.1.self_attn.v_proj"] == 3


def test_alpha_of_a_layer_is_folded_into_lambda(tmp_path):
    model = ours("llama", alpha_pattern={"layers.0.self_attn.k_proj": 3.0})
    export_peft(model, tmp_path)
    torch.testing.assert_close(logits(opened("llama", tmp_path), "llama"), logits(model, "llama"), **CLOSE)
    lambda_ = model.model.layers[0].self_attn.k_proj.update.randlora_lambda
    written = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.k_proj.randlora_lambda"
    torch.testing.assert_close(written[key], lambda_ * 3.0 / 100.0, rtol=1e-6, atol=0)


def _updates(model):
    return {name: layer.update for name, layer in adapter_layers(model).items()}


@pytest.mark.parametrize(
    ("architecture", "module"), [("llama", "lm_head"), ("llama", "model.norm"), ("vit", "classifier")]
)
def test_modules_that_train_whole(architecture, module, tmp_path):
    model = ours(architecture, "lora", trainable=(module,))
    export_peft(model, tmp_path / "ours")
    loaded = opened(architecture, tmp_path / "ours")
    torch.testing.assert_close(logits(loaded, architecture), logits(model, architecture), **CLOSE)
    assert num_trainable(loaded) == count_parameters(model).trainable

    model = theirs(architecture, "lora", modules_to_save=[module])
    model.save_pretrained(tmp_path / "peft")
    imported = import_peft(tiny_model(architecture), tmp_path / "peft")
    torch.testing.assert_close(logits(imported, architecture), logits(model, architecture), **CLOSE)
    assert count_parameters(imported).trainable == num_trainable(model)
    assert imported.get_submodule(module).weight.requires_grad


def test_a_task_type_adds_modules_that_the_model_need_not_have(tmp_path):
    model = theirs("vit", "lora", task_type="SEQ_CLS", modules_to_save=["score", "classifier"])
    model.save_pretrained(tmp_path)
    imported = import_peft(tiny_model("vit"), tmp_path)
    torch.testing.assert_close(logits(imported, "vit"), logits(model, "vit"), **CLOSE)


def test_targets_are_exactly_ours_where_a_name_ends_in_another(tmp_path):
    def network():
        torch.manual_seed(0)
        inner = torch.nn.ModuleDict({"proj": torch.nn.Linear(6, 6), "other": torch.nn.Linear(6, 6)})
        return torch.nn.ModuleDict({"proj": torch.nn.Linear(6, 8), "inner": inner})

    model = moved(inject_adapter(network(), make_config("lora", rank=2), r"proj"))
    export_peft(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "proj"
    loaded = peft.PeftModel.from_pretrained(network(), tmp_path)
    assert [n for n, m in loaded.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)] == [
        "base_model.model.proj"
    ]
    x = torch.randn(3, 6)
    torch.testing.assert_close(loaded.base_model.model["proj"](x), model["proj"](x))
    assert set(_updates(import_peft(network(), tmp_path))) == {"proj"}


def test_layers_to_transform_and_all_linear(tmp_path):
    for name, changes in {
        "one": {"layers_to_transform": [1]},
        "pattern": {"layers_to_transform": 0, "layers_pattern": "layers"},
        "all": {"target_modules": "all-linear"},
        "excluded": {"exclude_modules": ["layers.0.mlp.down_proj"]},
        "expression": {"target_modules": r".*layers\.0.*\.(q|k)_proj"},
    }.items():
        model = theirs("qwen2", "lora", **changes)
        model.save_pretrained(tmp_path / name)
        imported = import_peft(tiny_model("qwen2"), tmp_path / name)
        torch.testing.assert_close(logits(imported, "qwen2"), logits(model, "qwen2"), **CLOSE)
        assert count_parameters(imported).trainable == num_trainable(model)


@pytest.mark.parametrize("variant", ["randlora", "randlora_sparse", "randlora_very_sparse", "vera"])
def test_bases_that_peft_did_not_save_are_drawn_again_with_a_warning(variant, tmp_path):
    with pytest.warns(UserWarning, match="[Nn]ot to save|not save"):
        model = theirs("phi3", variant, save_projection=False, projection_prng_key=3)
        model.peft_config["default"].__post_init__()
    model.save_pretrained(tmp_path)
    assert not any(name.endswith("_A") for name in load_file(tmp_path / "adapter_model.safetensors"))
    with pytest.warns(UserWarning, match="PEFT does not promise the same values"):
        imported = import_peft(tiny_model("phi3"), tmp_path)
    torch.testing.assert_close(logits(imported, "phi3"), logits(model, "phi3"), **CLOSE)


def test_dropout_comes_along(tmp_path):
    theirs("llama", "lora").save_pretrained(tmp_path / "peft")
    assert adapter_state(import_peft(tiny_model("llama"), tmp_path / "peft")).config.dropout == 0.1
    export_peft(ours("llama", dropout=0.3), tmp_path / "ours")
    assert opened("llama", tmp_path / "ours").peft_config["default"].randlora_dropout == 0.3


def test_a_merged_model_exports_what_it_would_unmerged(tmp_path):
    model = ours("llama", "dora")
    export_peft(model, tmp_path / "unmerged")
    export_peft(merge_adapter(model), tmp_path / "merged")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("unmerged", "merged"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_an_imported_adapter_trains(tmp_path):
    theirs("qwen2").save_pretrained(tmp_path)
    model = import_peft(tiny_model("qwen2"), tmp_path)
    ids = tiny_models.batch("qwen2")["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad.any() for parameter in adapter_parameters(model))
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("settings", [{"rank": 3, "groups": 3}, {"rank": 4, "groups": 2, "basis": "normal"}])
def test_bases_in_groups_come_back_from_peft_as_blocks(settings, tmp_path):
    """Out to PEFT, trained there, and back: the groups are found by the zeros, and entries are those of the seed."""
    model = ours("qwen2", **settings)
    with pytest.warns(UserWarning, match=r"with their zeros they take \d+\.\d MB"):
        export_peft(model, tmp_path / "out")
    alpha = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["randlora_alpha"]
    assert isinstance(alpha, int)  # as PEFT annotates it, though units of bases in groups are square roots
    there = opened("qwen2", tmp_path / "out")
    moved(there).save_pretrained(tmp_path / "back")
    imported = import_peft(tiny_model("qwen2"), tmp_path / "back")
    assert not torch.allclose(logits(there, "qwen2"), logits(model, "qwen2"), atol=1e-2)
    torch.testing.assert_close(logits(imported, "qwen2"), logits(there, "qwen2"), **CLOSE)
    config = adapter_state(imported).config
    assert (config.basis, config.groups, config.allow_rank_loss) == ("imported", settings["groups"], False)
    (drawn,), (found,) = adapter_bases(model).values(), adapter_bases(imported).values()
    assert found.shapes == drawn.shapes
    for name, matrix in drawn.named_buffers():
        other = found.get_buffer(name)
        assert other.dtype == matrix.dtype
        factors = (other.double() / matrix.double()).unique()  # one power of two: the mantissas are the same
        assert len(factors) == 1 and float(factors).hex().startswith("0x1.0000000000000p")
    save_adapter(imported, tmp_path / "own")
    again = load_adapter(tiny_model("qwen2"), tmp_path / "own")
    assert torch.equal(logits(again, "qwen2"), logits(imported, "qwen2"))
    export_peft(again, tmp_path / "again")
    first, second = (load_file(tmp_path / part / "adapter_model.safetensors") for part in ("back", "again"))
    assert all(torch.equal(second[name], first[name]) for name in ("base_model.randlora_A", "base_model.randlora_B"))
    torch.testing.assert_close(logits(opened("qwen2", tmp_path / "again"), "qwen2"), logits(there, "qwen2"), **CLOSE)


def test_groups_above_the_number_of_bases_are_imported_too(tmp_path):
    model = ours("qwen2", rank=12, groups=12, allow_rank_loss=True)
    export_peft(model, tmp_path)
    imported = import_peft(tiny_model("qwen2"), tmp_path)
    assert (adapter_state(imported).config.groups, adapter_state(imported).config.allow_rank_loss) == (12, True)
    torch.testing.assert_close(logits(imported, "qwen2"), logits(model, "qwen2"), **CLOSE)


def test_dense_matrices_of_pefts_are_in_no_groups(tmp_path):
    for variant in ("randlora", "randlora_sparse"):
        theirs("gpt2", variant).save_pretrained(tmp_path / variant)
        assert adapter_state(import_peft(tiny_model("gpt2"), tmp_path / variant)).config.groups == 1
