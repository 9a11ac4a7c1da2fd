"""Saving and loading adapters: exact round trips, and refusals that leave the model as it was."""

import copy
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from randlora_core import (
    METHODS,
    LoRAConfig,
    RandLoRAConfig,
    count_parameters,
    export_peft,
    import_peft,
    inject_adapter,
    load_adapter,
    make_config,
    merge_adapter,
    save_adapter,
)
from randlora_core.adapters.checkpoint import CONFIG_FILE, TENSORS_FILE
from randlora_core.adapters.state import adapter_bases

WIDTH = 12
VARIANTS = {name: (name, {}) for name in METHODS} | {
    "randdora": ("randlora", {"magnitude": True, "init": "gamma_zero"}),
    "very_sparse": ("randlora", {"basis": "very_sparse"}),
    "patterns": ("randlora", {"rank_pattern": {"wide": 3}, "alpha_pattern": {".*proj": 7.5}, "alpha": 11, "seed": 5}),
    "rslora": ("lora", {"rank_stabilized": True}),
    "blocks": ("randlora", {"rank": 3, "groups": "max"}),
    "blocks_of_two": ("randlora", {"rank": 4, "groups": 2, "magnitude": True}),
}
TARGETS = {
    False: ("attention.in_proj", "attention.out_proj", "wide", "conv"),
    True: ("attention.q_proj", "attention.v_proj", "wide", "conv"),
}


class Network(nn.Module):
    """Every kind of layer, rectangular both ways, and parts that train whole."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.wide = nn.Linear(WIDTH, 20)
        self.conv = Conv1D(WIDTH, 20)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x)[0]
        return self.head(self.conv(torch.relu(self.wide(x))))


def make_network() -> Network:
    torch.manual_seed(0)
    return Network()


def trained(variant: str = "randlora", split: bool = False, **fields) -> Network:
    """A network with an adapter, a trained head and a trained bias inside attention, all moved."""
    method, settings = VARIANTS[variant]
    config = make_config(method, **{"rank": 5, **settings, **fields})
    trainable = ("head", "in_proj_bias", "wide.bias")
    model = inject_adapter(make_network(), config, TARGETS[split], trainable=trainable, split_in_proj=split)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)


def snapshot(model: nn.Module) -> tuple:
    """Everything that a refused load could have changed."""
    modules = [
        (name, id(module), type(module), dict(module.__dict__.items())) for name, module in model.named_modules()
    ]
    modules = [(name, key, kind, sorted(state), sorted(state["_modules"])) for name, key, kind, state in modules]
    parameters = [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]
    return modules, parameters


def assert_unchanged(model: nn.Module, before: tuple) -> None:
    modules, parameters = snapshot(model)
    assert modules == before[0]
    assert [row[:3] for row in parameters] == [row[:3] for row in before[1]]
    assert all(torch.equal(new[3], old[3]) for new, old in zip(parameters, before[1], strict=True))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_exact(tmp_path, variant, split):
    model = trained(variant, split)
    expected = model(inputs())
    save_adapter(model, tmp_path / "new" / "directory")
    plain = make_network()
    assert not torch.allclose(plain(inputs()), expected, atol=1e-2)
    torch.manual_seed(9)
    loaded = load_adapter(plain, tmp_path / "new" / "directory")
    assert loaded is plain
    assert torch.equal(loaded(inputs()), expected)
    assert count_parameters(loaded) == count_parameters(model)
    ours, theirs = dict(loaded.named_parameters()), dict(model.named_parameters())
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {n for n, p in ours.items() if p.requires_grad} == {n for n, p in theirs.items() if p.requires_grad}
    for rank, bases in adapter_bases(model).items():
        buffers = dict(adapter_bases(loaded)[rank].named_buffers())
        assert all(torch.equal(buffers[name], matrix) for name, matrix in bases.named_buffers())


@pytest.mark.parametrize("change", ["bfloat16", "double", "merged"])
def test_round_trip_of_moved_and_merged_models(tmp_path, change):
    model, plain = trained(), make_network()
    if change == "merged":
        expected = model(inputs())
        merge_adapter(model)
        dtype = torch.float32
    else:
        dtype = getattr(torch, change)
        model, plain = model.to(dtype), plain.to(dtype)
        expected = model(inputs(dtype))
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(plain, tmp_path)(inputs(dtype)), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_holds_what_trained_and_no_more(tmp_path, variant):
    model = trained(variant)
    save_adapter(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG_FILE, TENSORS_FILE]
    trainable_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    with open(tmp_path / TENSORS_FILE, "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert (tmp_path / TENSORS_FILE).stat().st_size == header + trainable_bytes
    assert (
        sum(tensor.numel() for tensor in load_file(tmp_path / TENSORS_FILE).values())
        == count_parameters(model).trainable
    )


def test_a_compiled_model_saves_as_the_plain_one(tmp_path):
    model = trained()
    save_adapter(torch.compile(model, backend="eager"), tmp_path)
    assert torch.equal(load_adapter(make_network(), tmp_path)(inputs()), model(inputs()))


def test_the_description(tmp_path):
    config = RandLoRAConfig(rank=5, alpha=10, dropout=0.1, basis="ternary", sparsity=4.0, seed=7)
    model = inject_adapter(make_network(), config, ("wide", "attention.in_proj"), trainable=("head",))
    save_adapter(model, tmp_path)
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert content["method"] == "randlora"
    assert {key: content[key] for key in ("rank", "alpha", "dropout", "basis", "sparsity", "seed")} == {
        "rank": 5,
        "alpha": 10,
        "dropout": 0.1,
        "basis": "ternary",
        "sparsity": 4.0,
        "seed": 7,
    }
    assert content["targets"] == {"attention.in_proj": [3 * WIDTH, WIDTH], "wide": [20, WIDTH]}
    assert content["trainable"] == ["head.weight", "head.bias"]
    assert content["bases"] == {"5": {"source": "seed", "sha256": adapter_bases(model)[5].checksum}}


def test_names_that_are_suffixes_of_others_are_told_apart(tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.ModuleDict({"proj": nn.Linear(6, 6), "block": nn.ModuleDict({"proj": nn.Linear(6, 6)})})

    save_adapter(inject_adapter(build(), RandLoRAConfig(rank=2), "proj"), tmp_path)
    loaded = load_adapter(build(), tmp_path)
    assert list(count_parameters(loaded).per_layer) == ["proj"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("below", ["", "new/folder"])
@pytest.mark.parametrize("write", [save_adapter, export_peft])
def test_a_file_where_a_folder_is_wanted_is_refused_first(tmp_path, write, below):
    """Before anything else is done: in these groups, an export would warn."""
    model = inject_adapter(nn.Sequential(nn.Linear(12, 20)), RandLoRAConfig(rank=2, groups=2), ["0"])
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=rf"^{file / below}: (it|{file}) is a file; accepted: a folder"):
        write(model, file / below)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch, failing):
    save_adapter(trained("lora"), tmp_path)
    old = {name: (tmp_path / name).read_bytes() for name in (CONFIG_FILE, TENSORS_FILE)}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "write":
            patch.setattr(Path, "write_bytes", full)
        else:
            patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space left"):
            save_adapter(trained("randlora"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    save_adapter(trained("randlora"), tmp_path)
    assert torch.equal(load_adapter(make_network(), tmp_path)(inputs()), trained("randlora")(inputs()))


def edit(directory, **changes):
    path = directory / CONFIG_FILE
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def rewrite_tensors(directory, change):
    tensors = load_file(directory / TENSORS_FILE)
    change(tensors)
    save_file(tensors, directory / TENSORS_FILE)


def truncate(directory, name, keep):
    path = directory / name
    path.write_bytes(path.read_bytes()[:keep])


def flip_a_bit(directory):
    path = directory / TENSORS_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def other_method(directory, name):
    save_adapter(trained("lora"), directory / "other")
    shutil.copy(directory / "other" / name, directory / name)


class Exploding:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


GAMMA = "wide.randlora_gamma"
SEEDED = {"source": "seed"}
# name -> (what is done to a good directory, the file at fault, the reason)
DAMAGE = {
    "no directory": (shutil.rmtree, "", "there is no such directory"),
    "no config": (lambda d: os.remove(d / CONFIG_FILE), CONFIG_FILE, "cannot be read"),
    "no tensors": (lambda d: os.remove(d / TENSORS_FILE), TENSORS_FILE, "cannot be read"),
    "truncated tensors": (lambda d: truncate(d, TENSORS_FILE, -10), TENSORS_FILE, "damaged"),
    "truncated header": (lambda d: truncate(d, TENSORS_FILE, 20), TENSORS_FILE, "damaged"),
    "empty tensors": (lambda d: truncate(d, TENSORS_FILE, 0), TENSORS_FILE, "damaged"),
    "pickle": (lambda d: (d / TENSORS_FILE).write_bytes(pickle.dumps(Exploding())), TENSORS_FILE, "damaged"),
    "flipped bit": (flip_a_bit, TENSORS_FILE, "SHA-256"),
    "truncated config": (lambda d: truncate(d, CONFIG_FILE, 50), CONFIG_FILE, "not JSON"),
    "binary config": (lambda d: (d / CONFIG_FILE).write_bytes(b"\xff\xfe\x00"), CONFIG_FILE, "not JSON"),
    "config is a list": (lambda d: (d / CONFIG_FILE).write_text("[]"), CONFIG_FILE, "not an object"),
    "lora's tensors": (lambda d: other_method(d, TENSORS_FILE), TENSORS_FILE, "lacks .*randlora_gamma.*unexpected"),
    "lora's config": (lambda d: other_method(d, CONFIG_FILE), TENSORS_FILE, "lacks .*lora_A.*unexpected"),
    "PEFT": (lambda d: edit(d, peft_type="RANDLORA"), CONFIG_FILE, "it lacks r, target_modules"),
    "unknown method": (lambda d: edit(d, method="lor"), CONFIG_FILE, "unknown method 'lor'"),
    "unhashable method": (lambda d: edit(d, method=["lora"]), CONFIG_FILE, ""),
    "unknown field": (lambda d: edit(d, rnk=3), CONFIG_FILE, "unknown field 'rnk'"),
    "missing key": (lambda d: edit(d, targets=...), CONFIG_FILE, "lacks targets"),
    "no rank": (lambda d: edit(d, rank=...), CONFIG_FILE, "rank"),
    "bad rank": (lambda d: edit(d, rank=0), CONFIG_FILE, "rank must be an integer of at least 1"),
    "rank too high": (lambda d: edit(d, rank=13), CONFIG_FILE, "limit is 12"),
    "other rank": (lambda d: edit(d, rank=4), CONFIG_FILE, r"bases has the ranks \[5\]"),
    "format": (lambda d: edit(d, format=2), CONFIG_FILE, "format is 2"),
    "wrong seed": (lambda d: edit(d, seed=1), CONFIG_FILE, "cannot be made again: seed 1"),
    "bad seed": (lambda d: edit(d, seed=-1), CONFIG_FILE, "seed must be"),
    "wrong checksum": (lambda d: edit(d, bases={"5": SEEDED | {"sha256": "0"}}), CONFIG_FILE, "says 0"),
    "no checksum": (lambda d: edit(d, bases={"5": SEEDED}), CONFIG_FILE, "must hold sha256"),
    "no bases": (lambda d: edit(d, bases={}), CONFIG_FILE, r"ranks \[\]"),
    "bases of another source": (lambda d: edit(d, bases={"5": {"source": "x"}}), CONFIG_FILE, "source 'seed'"),
    "bases are a list": (lambda d: edit(d, bases=[]), CONFIG_FILE, "bases must be of type dict"),
    "foreign layer": (lambda d: edit(d, targets={"wid": [20, 12]}), CONFIG_FILE, "no layer 'wid'.*mean wide"),
    "foreign shape": (lambda d: edit(d, targets={"wide": [12, 20]}), CONFIG_FILE, r"\(20, 12\) in the model"),
    "bad shape": (lambda d: edit(d, targets={"wide": [20, "12"]}), CONFIG_FILE, "shape of 'wide'"),
    "no targets": (lambda d: edit(d, targets={}), CONFIG_FILE, "targets is empty"),
    "split": (lambda d: edit(d, split_in_proj=True), CONFIG_FILE, "no layer 'attention.in_proj'"),
    "bad split": (lambda d: edit(d, split_in_proj=1), CONFIG_FILE, "split_in_proj must be of type bool"),
    "foreign parameter": (lambda d: edit(d, trainable=["hed.bias"]), CONFIG_FILE, "no parameter 'hed.bias'"),
    "bad trainable": (lambda d: edit(d, trainable=[1]), CONFIG_FILE, "list of names"),
    "tensor missing": (lambda d: rewrite_tensors(d, lambda t: t.pop(GAMMA)), TENSORS_FILE, f"lacks {GAMMA}"),
    "head missing": (lambda d: rewrite_tensors(d, lambda t: t.pop("head.bias")), TENSORS_FILE, "lacks head.bias"),
    "tensor added": (lambda d: rewrite_tensors(d, lambda t: t.update(x=torch.ones(1))), TENSORS_FILE, "unexpected x"),
    "tensor's shape": (
        lambda d: rewrite_tensors(d, lambda t: t.update({GAMMA: t[GAMMA].T.contiguous()})),
        TENSORS_FILE,
        f"{GAMMA}' must be floating point of shape",
    ),
    "integers": (lambda d: rewrite_tensors(d, lambda t: t.update({GAMMA: t[GAMMA].int()})), TENSORS_FILE, "int32"),
    "another save": (lambda d: rewrite_tensors(d, lambda t: t[GAMMA].mul_(2)), TENSORS_FILE, "different saves"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_files_are_refused_and_change_nothing(tmp_path, damage):
    directory = tmp_path / "adapter"
    save_adapter(trained(), directory)
    do, file, reason = DAMAGE[damage]
    do(directory)
    model = make_network()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"^{directory / file}: .*{reason}"):
        load_adapter(model, directory)
    assert_unchanged(model, before)


def test_models_that_do_not_fit_are_refused(tmp_path):
    save_adapter(trained(), tmp_path)
    model = make_network()
    model.head = nn.Linear(WIDTH, 4)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: tensor 'head.*floating point of shape \(4"):
        load_adapter(model, tmp_path)
    assert_unchanged(model, before)

    model = trained("lora")
    before = snapshot(model)
    with pytest.raises(ValueError, match="has adapters already"):
        load_adapter(model, tmp_path)
    assert_unchanged(model, before)

    with pytest.raises(ValueError, match="has no adapter"):
        save_adapter(make_network(), tmp_path)


def test_no_damage_gets_through(tmp_path):
    """Random bytes changed anywhere in the tensors' file: always a ValueError, never a wrong adapter."""
    save_adapter(trained(), tmp_path)
    good = (tmp_path / TENSORS_FILE).read_bytes()
    model, stream = make_network(), random.Random(0)
    before = snapshot(model)
    for _ in range(40):
        data = bytearray(good)
        data[stream.randrange(len(data))] ^= 1 << stream.randrange(8)
        (tmp_path / TENSORS_FILE).write_bytes(data)
        with pytest.raises(ValueError, match=TENSORS_FILE):
            load_adapter(model, tmp_path)
    assert_unchanged(model, before)
    (tmp_path / TENSORS_FILE).write_bytes(good)
    assert torch.equal(load_adapter(copy.deepcopy(model), tmp_path)(inputs()), trained()(inputs()))


def test_statistics_of_modules_that_train_are_saved_with_them(tmp_path):
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))

    x = torch.randn(8, 6)
    model = inject_adapter(make(), LoRAConfig(rank=2), ("0",), trainable=("1",))
    for _ in range(3):
        model(3 * x + 1)  # moves the statistics
    save_adapter(model, tmp_path / "own")
    export_peft(model, tmp_path / "peft")
    save_adapter(import_peft(make(), tmp_path / "peft"), tmp_path / "imported")
    assert torch.equal(load_adapter(make(), tmp_path / "imported").eval()(x), model.eval()(x))
    loaded = load_adapter(make(), tmp_path / "own")
    assert loaded[1].num_batches_tracked == 3
    assert torch.equal(loaded.eval()(x), model(x))
    assert [name for name, p in loaded.named_parameters() if p.requires_grad and "lora" not in name] == [
        "1.weight",
        "1.bias",
    ]
