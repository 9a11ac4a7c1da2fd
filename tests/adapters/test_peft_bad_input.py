"""PEFT directories that cannot be imported: an error that names the file and the reason, and an untouched model."""

import json
import shutil
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import moved, targets_of, tiny_model

from randlora_core import import_peft, inject_adapter, load_adapter, make_config, save_adapter

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def edit(directory, **changes) -> None:
    path = directory / CONFIG
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def edit_tensors(directory, change) -> None:
    tensors = load_file(directory / TENSORS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / TENSORS)


def resize(name, *shape):
    return lambda directory: edit_tensors(directory, lambda tensors: tensors.update({name: torch.zeros(shape)}))


def without(*endings):
    def change(tensors):
        for name in [name for name in tensors if name.endswith(endings)]:
            del tensors[name]

    return lambda directory: edit_tensors(directory, change)


def only_a_pickle(directory) -> None:
    torch.save(load_file(directory / TENSORS), directory / PICKLE)
    (directory / TENSORS).unlink()


def shrink_all_b(directory) -> None:
    def change(tensors):
        for name in tensors:
            if name.endswith("randlora_B"):
                tensors[name] = tensors[name][:20]

    edit_tensors(directory, change)


# method -> what is wrong -> (how to do it, the file that the message names, the reason it gives)
DAMAGE = {
    "randlora": {
        "no config": (lambda d: (d / CONFIG).unlink(), CONFIG, "cannot be read"),
        "config is not JSON": (lambda d: (d / CONFIG).write_text("{"), CONFIG, "not JSON"),
        "no tensors": (lambda d: (d / TENSORS).unlink(), TENSORS, "cannot be read"),
        "damaged tensors": (lambda d: (d / TENSORS).write_bytes(b"12345678"), TENSORS, "not a safetensors file"),
        "pickle": (only_a_pickle, TENSORS, "adapter_model.bin, a pickle"),
        "another method": (lambda d: edit(d, peft_type="BOFT"), CONFIG, "peft_type 'BOFT'.*LORA, RANDLORA, VERA"),
        "method of other tensors": (lambda d: edit(d, peft_type="VERA"), CONFIG, "randlora_dropout|randlora_alpha=640"),
        "no alpha": (lambda d: edit(d, randlora_alpha="absent"), CONFIG, "lacks randlora_alpha"),
        "alpha is text": (lambda d: edit(d, randlora_alpha="x"), CONFIG, "alpha must be a finite number"),
        "rank 0": (lambda d: edit(d, r=0), CONFIG, "rank must be an integer of at least 1, got 0"),
        "other rank": (lambda d: edit(d, r=4), TENSORS, r"randlora_lambda' must be .*\(4, 6\).* for rank 4"),
        "rank above a side": (lambda d: edit(d, r=25), CONFIG, "rank 25 is above the smaller side"),
        "bias": (lambda d: edit(d, bias="all"), CONFIG, "bias='all' is not supported"),
        "unknown setting": (lambda d: edit(d, new_feature=True), CONFIG, "new_feature=True is not supported"),
        "bad expression": (lambda d: edit(d, target_modules="("), TENSORS, "not a regular expression"),
        "missing parameter": (without("q_proj.randlora_gamma"), TENSORS, "lacks the tensor .*q_proj.randlora_gamma"),
        "missing layer": (
            without("v_proj.randlora_gamma", "v_proj.randlora_lambda"),
            TENSORS,
            "lacks the tensors of .*v_proj",
        ),
        "missing bases": (
            without("randlora_A", "randlora_B"),
            TENSORS,
            "lacks base_model.randlora_A, base_model.randlora_B",
        ),
        "small basis": (shrink_all_b, TENSORS, r"base_model.randlora_B' must be .*at least of shape \(40, 5, 5\)"),
        "other shape": (resize(f"{Q}.randlora_gamma", 5, 23), TENSORS, r"randlora_gamma' must be .*\(5, 24\)"),
        "other layer": (
            resize("base_model.model.model.layers.7.x.randlora_gamma", 5, 24),
            TENSORS,
            "'model.layers.7.x'",
        ),
        "more layers": (
            lambda d: edit(d, target_modules=["q_proj"]),
            TENSORS,
            "which the settings in adapter_config.json",
        ),
        "fewer layers": (
            lambda d: edit(d, target_modules=["o_proj", "q_proj", "v_proj", "down_proj"]),
            TENSORS,
            "lacks .*o_proj",
        ),
        "unexpected tensor": (
            resize("base_model.model.model.norm.weight", 24),
            TENSORS,
            "unexpected tensor 'model.norm.weight'",
        ),
        "missing module": (
            lambda d: edit(d, modules_to_save=["model.norm"]),
            TENSORS,
            "lacks model.norm.weight, of modules",
        ),
    },
    "lora": {
        "start": (lambda d: edit(d, init_lora_weights="pissa"), CONFIG, "init_lora_weights='pissa' changes the frozen"),
        "arrow": (lambda d: edit(d, arrow_config={"top_k": 1}), CONFIG, "arrow_config=.* is not supported"),
        "rank of a layer": (lambda d: edit(d, rank_pattern={"q_proj": 2}), TENSORS, "for rank 2"),
        "dora": (lambda d: edit(d, use_dora=True), TENSORS, "lacks the tensor .*lora_magnitude_vector"),
        "bias of LoRA": (lambda d: edit(d, lora_bias=True), CONFIG, "lora_bias=True is not supported"),
        "bias tensor": (resize(f"{Q}.lora_B.bias", 24), TENSORS, "unexpected tensor .*lora_B.bias"),
        "embedding": (
            resize("base_model.model.model.embed_tokens.lora_embedding_A", 5, 41),
            TENSORS,
            "unexpected tensor",
        ),
        "no tensor at all": (without("weight"), TENSORS, "no tensor of the method LORA"),
    },
}
CASES = [(method, damage) for method, kinds in DAMAGE.items() for damage in kinds]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory per method as PEFT writes it."""
    directories = {}
    for method, kind in (("randlora", peft.RandLoraConfig), ("lora", peft.LoraConfig)):
        directories[method] = tmp_path_factory.mktemp(method)
        model = peft.get_peft_model(tiny_model("qwen2"), kind(r=5, target_modules=list(targets_of("qwen2"))))
        moved(model).save_pretrained(directories[method])
    return directories


def snapshot(model):
    parameters = {name: (p.detach().clone(), p.requires_grad, type(p)) for name, p in model.named_parameters()}
    return parameters, [(name, type(module)) for name, module in model.named_modules()]


def assert_untouched(model, before) -> None:
    parameters, modules = snapshot(model)
    assert modules == before[1] and parameters.keys() == before[0].keys()
    for name, (value, requires_grad, kind) in parameters.items():
        assert torch.equal(value, before[0][name][0]) and (requires_grad, kind) == before[0][name][1:]


@pytest.mark.parametrize(("method", "damage"), CASES)
def test_damaged_directories(method, damage, saved, tmp_path):
    directory = tmp_path / "adapter"
    shutil.copytree(saved[method], directory)
    do, file, reason = DAMAGE[method][damage]
    do(directory)
    model = tiny_model("qwen2")
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"(?s)^{directory / file}: .*{reason}"):
        import_peft(model, directory)
    assert_untouched(model, before)
    import_peft(model, saved[method])


def test_other_models_and_directories(saved, tmp_path):
    other = tiny_model("gpt2")
    before = snapshot(other)
    with pytest.raises(ValueError, match=rf"{TENSORS}: .*no linear layer of the model"):
        load_adapter(other, saved["lora"])
    assert_untouched(other, before)
    with pytest.raises(ValueError, match="no such directory"):
        import_peft(other, tmp_path / "nowhere")
    inject_adapter(other, make_config("lora", rank=2), targets_of("gpt2"))
    with pytest.raises(ValueError, match="adapters already"):
        import_peft(other, saved["lora"])


def test_a_tied_module_cannot_be_imported(tmp_path):
    """GPT-2's output layer is its embedding; PEFT trains a copy of it, which a tied model cannot hold."""
    config = peft.LoraConfig(r=2, target_modules=["c_fc"], modules_to_save=["lm_head"], fan_in_fan_out=True)
    peft.get_peft_model(tiny_model("gpt2"), config).save_pretrained(tmp_path)
    model = tiny_model("gpt2")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'lm_head.weight' of modules_to_save is shared"):
        import_peft(model, tmp_path)
    assert_untouched(model, before)


def test_bases_that_were_not_saved_need_peft(saved, tmp_path, monkeypatch):
    shutil.copytree(saved["randlora"], tmp_path / "adapter")
    without("randlora_A", "randlora_B")(tmp_path / "adapter")
    edit(tmp_path / "adapter", save_projection=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    model = tiny_model("qwen2")
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"{TENSORS}: .*could draw them, is not installed.*randlora\[peft\]"):
        import_peft(model, tmp_path / "adapter")
    assert_untouched(model, before)


def test_damage_to_stored_imported_bases_is_refused(saved, tmp_path):
    save_adapter(import_peft(tiny_model("qwen2"), saved["randlora"]), tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    for bases, reason in (
        ({}, r"ranks \[\]"),
        ({"5": {"source": "seed", "sha256": "0"}}, "from one source"),
        ({"5": {"source": "file", "units": {"A": 1.0}}}, "finite unit for each of"),
        ({"5": {"source": "file", "units": {"A": 1.0, "B": "x"}}}, "finite unit for each of"),
        ({"5": {"source": "file"}}, "must hold units"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps({**content, "bases": bases}))
        model = tiny_model("qwen2")
        before = snapshot(model)
        with pytest.raises(ValueError, match=rf"^{tmp_path / CONFIG}: .*{reason}"):
            load_adapter(model, tmp_path)
        assert_untouched(model, before)
