"""The best LoRA of any update, and full updates as frozen adapters."""

import copy
import weakref

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import logits, moved, targets_of, tiny_model
from torch import nn

from randlora_core import (
    count_parameters,
    delta_of,
    disable_adapter,
    export_peft,
    inject_adapter,
    inject_delta,
    load_adapter,
    make_config,
    merge_adapter,
    save_adapter,
    unload_adapter,
)
from randlora_core.adapters import peft_export
from randlora_core.adapters.delta import layer_delta
from randlora_core.adapters.state import adapter_layers

UPDATES = {
    "randlora": {},
    "groups as the rank": {"groups": "max"},
    "groups below the rank": {"groups": 2},
    "randdora": {"magnitude": True},
    "randlora_a": {"distinct_a": True, "num_bases": 6},
    "dora": {},
    "nola": {"num_bases_a": 7, "num_bases_b": 9},
    "vera": {},
}


def adapted(label: str, architecture: str = "gpt2", size: float = 0.05) -> nn.Module:
    method = label if label in ("dora", "nola", "vera") else "randlora"
    config = make_config(method, rank=4, **UPDATES[label])
    return moved(inject_adapter(tiny_model(architecture), config, targets_of(architecture)), size)


def opened(architecture: str, directory):
    return peft.PeftModel.from_pretrained(tiny_model(architecture), directory).eval()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("label", UPDATES)
def test_an_update_of_any_method_goes_out_as_lora(label, tmp_path):
    """At full rank nothing is lost, so that PEFT's outputs are ours up to rounding; at rank 2 the best part is kept."""
    model = adapted(label)
    kept = export_peft(model, tmp_path / "all", as_lora=24)
    assert list(kept.values()) == pytest.approx([1.0] * 6)
    torch.testing.assert_close(
        logits(opened("gpt2", tmp_path / "all"), "gpt2"), logits(model, "gpt2"), rtol=1e-3, atol=1e-4
    )

    kept = export_peft(model, tmp_path / "two", as_lora=2)
    tensors = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, delta in delta_of(model).items():
        a, b = (tensors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        assert a.shape == (2, delta.shape[1]) and b.shape == (delta.shape[0], 2)
        values = torch.linalg.svdvals(delta.double())
        # Eckart-Young: no matrix of rank 2 is nearer than the root of the rest of the squared singular values.
        torch.testing.assert_close((b @ a - delta).double().norm(), values[2:].norm(), rtol=1e-3, atol=1e-5)
        assert kept[name] == pytest.approx((values[:2].norm() / values.norm()).item(), rel=1e-4)


def test_energy_picks_the_smallest_rank_per_layer(tmp_path):
    model = adapted("randlora", "qwen2")
    kept = export_peft(model, tmp_path, as_lora="energy:0.9")
    config = peft.LoraConfig.from_pretrained(tmp_path)
    loaded = opened("qwen2", tmp_path)
    ranks = {}
    for name, delta in delta_of(model).items():
        squares = torch.linalg.svdvals(delta.double()).square()
        enough = squares.cumsum(0) >= 0.9 * squares.sum()
        ranks[name] = 1 + int((~enough).sum())
        layer = loaded.base_model.model.get_submodule(name)
        assert layer.r["default"] == ranks[name]
        assert kept[name] ** 2 >= 0.9
        difference = layer.get_delta_weight("default") - delta
        assert difference.norm() / delta.norm() == pytest.approx((1 - kept[name] ** 2) ** 0.5, rel=1e-3)
    assert len(set(ranks.values())) > 1 and config.rank_pattern
    assert config.alpha_pattern == {}


def test_a_rank_above_a_side_is_that_side_and_warned_of(tmp_path, recwarn):
    layers = nn.Sequential(nn.Linear(48, 96), nn.Linear(96, 8))
    model = inject_adapter(layers, make_config("randlora", rank=4), ["0", "1"])
    moved(model)
    export_peft(model, tmp_path / "fits", as_lora=8)
    export_peft(model, tmp_path / "energy", as_lora="energy:1")
    assert not [warning for warning in recwarn if "as_lora" in str(warning.message)]
    with pytest.warns(
        UserWarning, match=r"as_lora=48 is above .* of 1 of 2 layers.*: '1' of .* takes ranks from 1 to 8$"
    ):
        export_peft(model, tmp_path / "one", as_lora=48)
    with pytest.warns(UserWarning, match=r"as_lora=1000 .* of 2 of 2 layers.*: '0' of shape \(96, 48\) .* 1 to 48$"):
        kept = export_peft(model, tmp_path / "both", as_lora=1000)
    assert kept == pytest.approx({"0": 1.0, "1": 1.0})
    tensors = load_file(tmp_path / "both" / "adapter_model.safetensors")
    assert {name: len(tensor) for name, tensor in tensors.items()} == {
        "base_model.model.0.lora_A.weight": 48,
        "base_model.model.0.lora_B.weight": 96,
        "base_model.model.1.lora_A.weight": 8,
        "base_model.model.1.lora_B.weight": 8,
    }


def test_an_update_of_zero_goes_out_as_lora(tmp_path):
    model = inject_adapter(tiny_model("llama"), make_config("randlora", rank=4), targets_of("llama"))
    assert set(export_peft(model, tmp_path, as_lora="energy:0.99").values()) == {1.0}
    torch.testing.assert_close(logits(opened("llama", tmp_path), "llama"), logits(tiny_model("llama"), "llama"))


def test_two_exports_are_equal_and_leave_the_random_numbers_alone(tmp_path):
    """On a layer that is large enough for the randomised decomposition."""
    model = inject_adapter(nn.Sequential(nn.Linear(96, 128)), make_config("randlora", rank=8), ["0"])
    moved(model)
    before = torch.random.get_rng_state()
    kept = export_peft(model, tmp_path / "first", as_lora=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(7)
    assert export_peft(model, tmp_path / "second", as_lora=4) == kept
    files = [(tmp_path / which / "adapter_model.safetensors").read_bytes() for which in ("first", "second")]
    assert files[0] == files[1]
    values = torch.linalg.svdvals(delta_of(model)["0"].double())
    assert 0.98 < kept["0"] / (values[:4].norm() / values.norm()).item() <= 1 + 1e-6


@pytest.mark.parametrize("merged", [False, True])
def test_updates_are_made_one_at_a_time(merged, tmp_path, monkeypatch):
    """Together they would be as large as the model in float32."""
    model, alive = adapted("randlora", "llama"), []

    def watched(layer):
        assert all(reference() is None for reference in alive)
        delta = layer_delta(layer)
        alive.append(weakref.ref(delta))
        return delta

    monkeypatch.setattr(peft_export, "layer_delta", watched)
    expected = export_peft(model, tmp_path / "plain", as_lora=2)
    if merged:
        merge_adapter(model)
    alive.clear()
    assert export_peft(model, tmp_path / "again", as_lora=2) == pytest.approx(expected)
    assert len(alive) == len(expected) > 1


def test_an_update_that_is_not_finite_is_named_and_nothing_written(tmp_path):
    model = adapted("randlora", "llama")
    name, layer = list(adapter_layers(model).items())[1]
    with torch.no_grad():
        layer.update.randlora_gamma[0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"layer '{name}' has values that are not finite"):
        export_peft(model, tmp_path / "new", as_lora=2)
    assert not (tmp_path / "new").exists()
    assert adapter_layers(model)[name].acts


@pytest.mark.parametrize(
    ("progress", "many", "shown"), [(None, 10**8, False), (None, 10, True), (True, 10**8, True), (False, 10, False)]
)
def test_progress_is_a_line_per_layer_for_large_models_or_on_demand(
    progress, many, shown, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(peft_export, "_MANY_WEIGHTS", many)
    kept = export_peft(adapted("randlora", "llama"), tmp_path, as_lora=2, progress=progress)
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == shown * len(kept) and kept
    for number, (line, (name, share)) in enumerate(zip(printed.err.splitlines(), kept.items(), strict=False), start=1):
        assert line.startswith(f"as LoRA {number}/{len(kept)}, ") and f"{name}: rank 2 keeps {share:.4f}" in line


@pytest.mark.parametrize(
    "as_lora", [0, -1, 2.5, True, "energy:", "energy:0", "energy:1.5", "energy:nan", "rank:3", "8"]
)
def test_other_values_are_refused(as_lora, tmp_path):
    with pytest.raises(ValueError, match="as_lora must be"):
        export_peft(adapted("randlora", "llama"), tmp_path / "new", as_lora=as_lora)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("randdora", "a trained magnitude on RandLoRA"),
        ("randlora_a", "RandLoRA-a"),
        ("nola", "PEFT has no method 'nola'"),
    ],
)
def test_what_peft_cannot_express_names_the_ways_out(label, message, tmp_path):
    with pytest.raises(ValueError, match=rf"{message}.*as_lora=<rank>.*merge the adapter"):
        export_peft(adapted(label), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_ranks_of_their_own_and_fewer_bases_are_refused(tmp_path):
    for fields, message in (
        ({"rank_pattern": {"q_proj": 2}}, r"rank 4 everywhere, got \[2, 4\]"),
        ({"num_bases": 2}, "num_bases=2"),
    ):
        model = inject_adapter(tiny_model("qwen2"), make_config("randlora", rank=4, **fields), targets_of("qwen2"))
        with pytest.raises(ValueError, match=message):
            export_peft(model, tmp_path)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2)
        self.first = nn.Linear(12, 12)
        self.alias = self.first
        self.norm = nn.LayerNorm(12)
        self.post_norm = nn.LayerNorm(12)


@pytest.mark.parametrize(
    ("targets", "trainable", "message"),
    [
        (("attention.in_proj",), (), "inside nn.MultiheadAttention"),
        (("attention.out_proj",), (), "inside nn.MultiheadAttention"),
        (("first",), (), "the model uses layer 'first' as alias too"),
        (("attention.out_proj", "first"), ("first.bias",), "inside nn.MultiheadAttention"),
    ],
)
def test_structures_that_peft_would_adapt_otherwise(targets, trainable, message, tmp_path):
    model = inject_adapter(Attention(), make_config("lora", rank=2), targets, trainable=trainable)
    with pytest.raises(ValueError, match=message):
        export_peft(model, tmp_path)


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (("second.bias",), "'second' trains in part"),
        (r"norm\..*", "would include post_norm"),
        (("first.bias",), "'first' trains in part"),
    ],
)
def test_trained_parts_that_peft_would_take_otherwise(trainable, message, tmp_path):
    names = ("first", "second", "norm", "post_norm")
    layers = [nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.LayerNorm(6)]
    model = nn.ModuleDict(dict(zip(names, layers, strict=True)))
    inject_adapter(model, make_config("lora", rank=2), ("first",), trainable=trainable)
    with pytest.raises(ValueError, match=message):
        export_peft(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_delta_of_full_fine_tuning_is_the_difference_of_the_weights():
    base = tiny_model("gpt2")
    tuned = moved(copy.deepcopy(base))
    deltas = delta_of(tuned, base)
    assert set(deltas) >= {"transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj", "lm_head"}
    name = "transformer.h.0.mlp.c_fc"  # Conv1D keeps its weight as (in, out)
    expected = tuned.get_submodule(name).weight.T - base.get_submodule(name).weight.T
    assert deltas[name].shape == (96, 24) and torch.equal(deltas[name], expected)


@pytest.mark.parametrize("label", UPDATES)
@pytest.mark.parametrize("merged", [False, True])
def test_delta_of_an_adapter_is_what_merging_adds(label, merged):
    model, base = adapted(label), tiny_model("gpt2")
    expected = logits(model, "gpt2")
    names = set(delta_of(model))
    deltas = delta_of(merge_adapter(model) if merged else model, base)
    assert set(deltas) == names
    full = inject_delta(base, deltas)
    torch.testing.assert_close(logits(full, "gpt2"), expected, rtol=1e-4, atol=2e-5)
    plain = unload_adapter(model if merged else merge_adapter(model))
    for name, delta in delta_of(plain, tiny_model("gpt2")).items():
        torch.testing.assert_close(deltas.get(name, torch.zeros_like(delta)), delta, rtol=1e-4, atol=1e-6)


def test_a_frozen_full_update_is_an_adapter(tmp_path):
    base = tiny_model("llama")
    tuned = copy.deepcopy(base)
    moved(tuned.model.layers)  # the layers' norms move as well, and are no part of the update
    deltas = {name: delta for name, delta in delta_of(tuned, base).items() if "layers" in name}
    model = inject_delta(copy.deepcopy(base), deltas)
    for name in deltas:
        torch.testing.assert_close(
            model.get_submodule(name).update.merged_weight(base.get_submodule(name).weight),
            tuned.get_submodule(name).weight,
        )
    changed = logits(model, "llama")
    assert not torch.allclose(changed, logits(base, "llama"), atol=1e-2)
    assert count_parameters(model).trainable == 0
    with disable_adapter(model):
        assert torch.equal(logits(model, "llama"), logits(base, "llama"))
    save_adapter(model, tmp_path / "own")
    assert torch.equal(logits(load_adapter(tiny_model("llama"), tmp_path / "own"), "llama"), changed)
    export_peft(model, tmp_path / "lora", as_lora="energy:1")
    torch.testing.assert_close(logits(opened("llama", tmp_path / "lora"), "llama"), changed, rtol=1e-3, atol=1e-4)
    merge_adapter(model)
    torch.testing.assert_close(logits(model, "llama"), changed, rtol=1e-4, atol=2e-5)


def test_delta_of_reads_attention_modules():
    base = Attention()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.attention.in_proj_weight.add_(1)
        tuned.first.weight.mul_(3)
    deltas = delta_of(tuned, base)
    assert set(deltas) == {"attention.in_proj", "attention.out_proj", "first"}
    torch.testing.assert_close(deltas["attention.in_proj"], torch.ones(36, 12))
    torch.testing.assert_close(deltas["first"], 2 * base.first.weight.detach())
    assert not deltas["attention.out_proj"].any()


def test_delta_of_refuses_models_that_do_not_match():
    with pytest.raises(ValueError, match="its pretrained model is needed"):
        delta_of(tiny_model("llama"))
    with pytest.raises(ValueError, match=r"the models differ in layer .*"):
        delta_of(nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(4, 4)))
    model = nn.Sequential(nn.Linear(3, 4))
    for deltas, message in (
        ({}, "at least one layer"),
        ({"0": torch.ones(3, 4)}, r"has the shape \(4, 3\)"),
        ({"1": torch.ones(4, 3)}, "is not in the model"),
    ):
        with pytest.raises(ValueError, match=message):
            inject_delta(model, deltas)
    assert type(model[0]) is nn.Linear
