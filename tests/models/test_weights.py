"""Weights are identified from their file, the hub's revision, the wheel or the seed, and no model is built for it."""

import hashlib
import inspect

import pytest
import small_files

from randlora_core.models import BACKBONES, build_backbone, identify_weights
from randlora_core.models.mini_clip import WEIGHTS_FILE
from randlora_core.models.weights import HubWeights, LocalWeights
from randlora_core.models.wheels import WHEELS

PATH = {"causal_lm": {"path": "owner/model"}}
"""Options without which a model has no weights."""


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch):
    from torch import nn

    def refuse(*_):
        raise AssertionError("a model was built")

    monkeypatch.setattr(nn.Linear, "__init__", refuse)


def test_small_clip_is_its_file(tmp_path, cache):
    assert identify_weights("mini_clip") == f"file {hashlib.sha256(WEIGHTS_FILE.read_bytes()).hexdigest()}"
    (tmp_path / "other").write_bytes(b"other")
    other = identify_weights("mini_clip", weights=str(tmp_path / "other"))
    assert other == f"file {hashlib.sha256(b'other').hexdigest()}"
    with pytest.raises(FileNotFoundError, match="absent"):
        identify_weights("mini_clip", weights=tmp_path / "absent")


@pytest.mark.parametrize("name", sorted(WHEELS))
def test_wheel_is_its_checksum_and_need_not_be_here(name, cache):
    assert identify_weights(name) == f"wheel {WHEELS[name].sha256} converter {WHEELS[name].converter}"
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "repository", "file"),
    [
        ("clip_vit_b32", "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors"),
        ("clip_vit_h14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_pytorch_model.bin"),
        ("dinov2_vit_s14", "timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors"),
        ("dinov2_vit_b14", "timm/vit_base_patch14_dinov2.lvd142m", "model.safetensors"),
        ("qwen2_05b", "Qwen/Qwen2-0.5B", "model.safetensors"),
        ("phi3_mini", "microsoft/Phi-3-mini-4k-instruct", "model.safetensors.index.json"),
        ("llama3_8b", "meta-llama/Meta-Llama-3-8B", "model.safetensors.index.json"),
        ("causal_lm", "owner/model", "pytorch_model.bin"),
    ],
)
def test_hub_model_is_the_commit_in_the_cache(name, repository, file, hub, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "README.md").write_text("no weights yet")
    hub(repository, tmp_path / "files")
    with pytest.raises(OSError, match=f"weights not here: {repository} .*cache"):
        identify_weights(name, **PATH.get(name, {}))
    (
        tmp_path / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / small_files.COMMIT / file
    ).write_text("weights")
    assert identify_weights(name, **PATH.get(name, {})) == f"hub {repository}@{small_files.COMMIT}"


def test_hub_is_asked_where_the_cache_is_empty(hub, monkeypatch):
    import huggingface_hub

    def answer(self, repository, timeout):
        assert timeout <= 30
        return huggingface_hub.hf_api.ModelInfo(id=repository, sha=small_files.COMMIT[::-1])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    assert identify_weights("dinov2_vit_b14") == f"hub timm/vit_base_patch14_dinov2.lvd142m@{small_files.COMMIT[::-1]}"


def test_weights_that_are_nowhere_are_one_line(hub, monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise RuntimeError("no route to host\nwith a long story")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    for name in [name for name in BACKBONES if name not in WHEELS and name != "mini_clip"]:
        for call in (identify_weights, build_backbone):
            with pytest.raises(FileNotFoundError, match=r"^weights not here: .*no route to host") as caught:
                call(name, **PATH.get(name, {}))
            assert "\n" not in str(caught.value)
    assert HubWeights("./no repository's name", ("file",)).find() is None


def test_folder_is_identified_by_what_decides_the_numbers(tmp_path, cache):
    found = set()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("1")
        found.add(identify_weights("causal_lm", path=tmp_path))
    (tmp_path / "README.md").write_text("not read by a model")
    assert len(found) == 3 and identify_weights("llama3_8b", path=str(tmp_path)) in found
    (tmp_path / "model.safetensors").write_text("22")
    assert identify_weights("causal_lm", path=tmp_path) not in found
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"weights not here: .*empty has no file"):
        LocalWeights(tmp_path / "empty").identify()
    with pytest.raises(ValueError, match="causal_lm: path must name"):
        identify_weights("causal_lm")


def test_random_weights_are_their_seed_and_their_architecture():
    options = {"image_size": 28, "architecture": {"depth": 2, "num_heads": 3}}
    base = identify_weights("dinov2_vit_b14", pretrained=False, **options)
    assert base.startswith("random dinov2_vit_b14 ")
    same = [
        {**options, "seed": 0},
        {**options, "device": "cuda"},
        {"architecture": {"num_heads": 3, "depth": 2}, "image_size": 28},
    ]
    assert {identify_weights("dinov2_vit_b14", pretrained=False, **changed) for changed in same} == {base}
    others = [{**options, "seed": 1}, {**options, "image_size": 42}, {**options, "architecture": {"depth": 3}}]
    found = {identify_weights("dinov2_vit_b14", pretrained=False, **changed) for changed in others}
    found.add(identify_weights("dinov2_vit_s14", pretrained=False, **options))
    assert len(found | {base}) == 5
    every = {identify_weights(name, pretrained=False) for name in BACKBONES}
    assert len(every) == len(BACKBONES)


def test_unknown_names_and_options_are_refused_by_both():
    for call in (identify_weights, build_backbone):
        with pytest.raises(ValueError, match=r"'resnet'.*mini_clip.*clip_vit_b32.*dinov2_vit_b14.*llama3_8b"):
            call("resnet")
        with pytest.raises(ValueError, match=r"'vit_s14_focus' has no option 'size'; known: .*image_size"):
            call("vit_s14_focus", size=98)


def test_every_builder_takes_a_seed():
    for name, entry in BACKBONES.items():
        parameters = inspect.signature(entry.build).parameters
        assert parameters["seed"].default == 0 and parameters["pretrained"].default is True, name
