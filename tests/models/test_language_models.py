import shutil

import pytest
import small_files
import torch

from randlora_core.adapters import quantization
from randlora_core.adapters.targets import find_targets as find_layers
from randlora_core.models import build_backbone
from randlora_core.models.language_models import (
    FUSED_TARGETS,
    LANGUAGE_MODELS,
    SEPARATE_TARGETS,
    find_targets,
    load_tokenizer,
)
from randlora_core.models.weights import HubWeights

SMALL = {**small_files.SIZES, "pad_token_id": 0}
IDS = torch.tensor([[3, 200, 17, 5]])


@pytest.fixture
def folder(tmp_path):
    """A small Llama model and a tokenizer, as transformers keeps them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    path = tmp_path / "model"
    small_files.make_llama().save_pretrained(path)
    words = Tokenizer(models.WordLevel({"unknown": 0, "one": 1, "two": 2}, unk_token="unknown"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="unknown").save_pretrained(path)
    return path


def logits(backbone):
    with torch.no_grad():
        return backbone.model(input_ids=IDS).logits


@pytest.mark.parametrize("name", sorted(LANGUAGE_MODELS))
def test_small_model_of_the_same_architecture(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = (build_backbone(name, pretrained=False, seed=4, architecture=SMALL) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    other = build_backbone(name, pretrained=False, seed=5, architecture=SMALL)
    assert (first.name, first.kind, first.embed_dim, first.max_length) == (name, "causal_lm", 32, 64)
    assert first.tokenizer is None and not first.model.training
    assert torch.equal(logits(first), logits(again)) and not torch.equal(logits(first), logits(other))
    assert set(find_layers(first.model, first.default_targets)) == {
        name for name, _ in first.model.named_modules() if name.endswith(first.default_targets)
    }
    assert find_targets(first.model) == first.default_targets
    assert first.default_targets == (FUSED_TARGETS if name == "phi3_mini" else SEPARATE_TARGETS)


@pytest.mark.parametrize(("name", "millions"), [("smollm2_135m", 134.515), ("qwen2_05b", 494.033)])
def test_sizes_on_the_meta_device(name, millions):
    model = build_backbone(name, pretrained=False, device="meta").model
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == millions
    assert all(parameter.is_meta for parameter in model.parameters())


def test_any_model_from_a_folder(folder):
    expected = small_files.make_llama()
    for name in ("causal_lm", "llama3_8b"):
        backbone = build_backbone(name, path=str(folder))
        with torch.no_grad():
            assert torch.equal(logits(backbone), expected(input_ids=IDS).logits)
        assert backbone.tokenizer("two").input_ids == [2]
        assert (backbone.name, backbone.default_targets) == (name, SEPARATE_TARGETS)
    half = build_backbone("causal_lm", path=folder, dtype="bfloat16").model.state_dict()
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in expected.state_dict().items())


def test_random_weights_with_the_config_and_tokenizer_of_a_folder(folder):
    backbone = build_backbone("causal_lm", path=folder, pretrained=False, architecture={"num_hidden_layers": 1})
    assert len(backbone.model.model.layers) == 1 and backbone.embed_dim == 32
    assert backbone.tokenizer("one").input_ids == [1]
    trained = small_files.make_llama().state_dict()
    drawn = backbone.model.state_dict()
    assert not torch.equal(drawn["model.embed_tokens.weight"], trained["model.embed_tokens.weight"])


def test_model_of_the_hub_is_the_cached_commit(folder, hub):
    hub("Qwen/Qwen2-0.5B", folder)
    backbone = build_backbone("qwen2_05b")
    with torch.no_grad():
        assert torch.equal(logits(backbone), small_files.make_llama()(input_ids=IDS).logits)
    assert backbone.tokenizer("two").input_ids == [2]


def test_what_is_loaded_is_the_commit_that_was_identified(folder, hub, monkeypatch, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    model = small_files.fill(small_files.make_llama(), seed=6)
    model.save_pretrained(other)
    hub("owner/model", folder)
    hub("owner/model", other, small_files.OTHER)
    monkeypatch.setattr(HubWeights, "find_revision", lambda self: small_files.OTHER)
    with torch.no_grad():
        assert torch.equal(logits(build_backbone("causal_lm", path="owner/model")), model(input_ids=IDS).logits)


def test_targets_of_a_model_with_other_names_are_its_linear_layers_without_the_head():
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    targets = find_targets(AutoModelForCausalLM.from_config(config))
    assert targets == ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value")


def test_bad_options_are_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match="causal_lm: dtype must be one of float32, bfloat16, float16, not 'int8'"):
        build_backbone("causal_lm", path=folder, dtype="int8")
    for changed in ({"architecture": SMALL}, {"device": "meta"}):
        with pytest.raises(ValueError, match="llama3_8b: pretrained=True fits neither"):
            build_backbone("llama3_8b", **changed)
    with pytest.raises(ValueError, match="causal_lm: path must name a folder or a hub repository"):
        build_backbone("causal_lm")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(OSError, match=r"^causal_lm: transformers could not load the weights .*model") as caught:
        build_backbone("causal_lm", path=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantised_models(folder, kind):
    pytest.importorskip("bitsandbytes")
    plain, quantised = build_backbone("causal_lm", path=folder), build_backbone("causal_lm", path=folder, quantize=kind)
    layers = dict(quantised.model.named_modules())
    is_quantised = quantization.is_linear_4bit if kind == "4bit" else quantization.is_linear_8bit
    names = {name for name, layer in plain.model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {name for name, layer in layers.items() if is_quantised(layer)} == names - {"lm_head"}
    original, dense = logits(plain), quantization.dense_4bit if kind == "4bit" else quantization.dense_8bit
    for name in names - {"lm_head"}:
        plain.model.get_submodule(name).weight.data.copy_(dense(layers[name]))
    expected = logits(plain)
    error = (logits(quantised) - expected).norm() / expected.norm()
    assert error < (1e-5 if kind == "4bit" else 0.02)  # 8-bit layers quantise their inputs, too
    assert (expected - original).norm() / original.norm() > 1e-3
    if kind == "4bit":
        first = layers["model.layers.0.mlp.up_proj"]
        state = first.weight.quant_state
        assert state.quant_type == "nf4" and state.nested and state.dtype == torch.float32
        first.eval()(torch.zeros(1, 32))
        assert first.weight.quant_state.nested  # not turned into bitsandbytes' format for CPUs, which is coarser


def test_what_cannot_be_quantised_is_refused(folder):
    for options in ({"quantize": "2bit"}, {"quantize": "4bit", "pretrained": False}):
        with pytest.raises(ValueError, match="accepted: 4bit, 8bit with pre-trained weights"):
            build_backbone("causal_lm", path=folder, **options)


def test_the_tokenizer_comes_without_the_model(folder):
    (folder / "model.safetensors").unlink()
    assert load_tokenizer("causal_lm", folder)("two").input_ids == [2]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(OSError, match="causal_lm: transformers could not load"):
        load_tokenizer("causal_lm", folder)
