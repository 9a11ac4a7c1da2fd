import json
import pickle
from functools import partial

import numpy as np
import pytest
import small_files
import torch
from PIL import Image
from safetensors.torch import save_file

from randlora_core.models import BACKBONES, build_backbone, open_clip_models
from randlora_core.models.open_clip_models import OpenClipSource
from randlora_core.models.weights import HubWeights

TINY_VISION = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
TINY_TEXT = {"layers": 2, "width": 32, "heads": 2, "context_length": 16}
TINY_DINOV2 = {"depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("clip_")])
def test_tiny_open_clip_model_of_the_same_architecture(name):
    backbone = build_backbone(name, pretrained=False, vision_cfg=TINY_VISION, text_cfg=TINY_TEXT)
    images = backbone.model.encode_image(torch.randn(2, 3, 32, 32))
    tokens = backbone.tokenize(["a photo of a cat", "a dog"])
    texts = backbone.model.encode_text(tokens)
    assert (backbone.kind, backbone.image_size, backbone.interpolation) == ("clip", 32, "bicubic")
    assert tokens.shape == (2, 16)
    assert images.shape == texts.shape == (2, backbone.embed_dim)
    assert backbone.mean == (0.48145466, 0.4578275, 0.40821073)
    _check_targets(backbone)


@pytest.mark.parametrize(
    ("name", "millions", "embed_dim", "image_size"),
    [("clip_vit_b32", 151.3, 512, 224), ("clip_vit_l14", 427.6, 768, 224), ("clip_vit_h14", 986.1, 1024, 224)],
)
def test_open_clip_sizes_on_the_meta_device(name, millions, embed_dim, image_size):
    backbone = build_backbone(name, pretrained=False, device="meta")
    count = sum(parameter.numel() for parameter in backbone.model.parameters())
    assert round(count / 1e6, 1) == millions
    assert (backbone.embed_dim, backbone.image_size) == (embed_dim, image_size)
    assert all(parameter.is_meta for parameter in backbone.model.parameters())


def test_openai_models_use_quick_gelu():
    """OpenAI's weights were trained with x * sigmoid(1.702 x); LAION's H/14 was not."""
    for name, expected in (("clip_vit_b32", "QuickGELU"), ("clip_vit_l14", "QuickGELU"), ("clip_vit_h14", "GELU")):
        layer = {"layers": 1}
        backbone = build_backbone(name, pretrained=False, device="meta", vision_cfg=layer, text_cfg=layer)
        assert type(backbone.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == expected


def test_dinov2_tiny_and_on_the_meta_device():
    tiny = build_backbone("dinov2_vit_b14", pretrained=False, image_size=28, architecture=TINY_DINOV2)
    assert tiny.model(torch.randn(2, 3, 28, 28)).shape == (2, 48) and tiny.embed_dim == 48
    assert tiny.kind == "vision" and tiny.tokenize is None and tiny.mean == (0.485, 0.456, 0.406)
    _check_targets(tiny)
    full = build_backbone("dinov2_vit_b14", pretrained=False, device="meta")
    count = sum(parameter.numel() for parameter in full.model.parameters())
    assert (full.embed_dim, full.image_size) == (768, 224)
    # Published: 86,580,480 with a mask token (timm has none) and a position table of 1,369 + 1 rows (here 256 + 1).
    assert count == 86_580_480 - 768 - (1370 - 257) * 768
    small = build_backbone("dinov2_vit_s14", pretrained=False, device="meta", image_size=518)
    count = sum(parameter.numel() for parameter in small.model.parameters())
    assert small.embed_dim == 384 and count == 22_056_576 - 384  # published, with a mask token


@pytest.mark.parametrize(("name", "option"), [("clip_vit_b32", "vision_cfg"), ("dinov2_vit_b14", "architecture")])
def test_trained_weights_do_not_fit_another_architecture(name, option):
    with pytest.raises(ValueError, match=rf"{name}: pretrained=True fits neither"):
        build_backbone(name, pretrained=True, **{option: {"layers": 1}})


def test_image_size_of_dinov2_must_be_a_multiple_of_its_patch():
    with pytest.raises(ValueError, match="multiple of 14, not 100"):
        build_backbone("dinov2_vit_b14", pretrained=False, image_size=100)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mini_clip", {}),
        ("clip_vit_b32", {"vision_cfg": TINY_VISION, "text_cfg": TINY_TEXT}),
        ("dinov2_vit_s14", {"image_size": 28, "architecture": TINY_DINOV2}),
    ],
)
def test_random_weights_follow_the_seed_and_leave_the_global_state_alone(name, options):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, again, other = (
        build_backbone(name, pretrained=False, seed=seed, **options).model.state_dict() for seed in (7, 7, 8)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.fixture
def small_open_clip(tmp_path, monkeypatch, hub):
    """An architecture of open_clip with weights in the hub cache, in the place of ViT-B/32; gives its model."""
    import open_clip
    from open_clip import pretrained

    config = {"embed_dim": 24, "vision_cfg": TINY_VISION, "text_cfg": {**TINY_TEXT, "vocab_size": 49408}}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    unusual = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(pretrained._PRETRAINED, "small-for-tests", {"ours": {"hf_hub": "owner/small/", **unusual}})
    monkeypatch.setitem(open_clip_models.SOURCES, "clip_vit_b32", OpenClipSource("small-for-tests", "ours"))
    model = open_clip.create_model("small-for-tests")
    (tmp_path / "files").mkdir()
    save_file(model.state_dict(), tmp_path / "files" / "open_clip_model.safetensors")
    hub("owner/small", tmp_path / "files")
    return model


def test_open_clip_weights_and_preprocessing_of_the_hub(small_open_clip):
    import open_clip

    torch.manual_seed(1)
    before = torch.get_rng_state()
    backbone = build_backbone("clip_vit_b32")
    assert torch.equal(before, torch.get_rng_state())
    found, expected = backbone.model.state_dict(), small_open_clip.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert (backbone.mean, backbone.std, backbone.interpolation) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bilinear")
    own = open_clip.create_model_and_transforms("small-for-tests", pretrained="ours")[2]
    for image in photographs():
        assert torch.equal(backbone.image_transform(image), own(image))


def test_what_is_loaded_is_the_commit_that_was_identified(small_open_clip, hub, tmp_path, monkeypatch):
    other = {name: tensor + 1 for name, tensor in small_open_clip.state_dict().items()}
    (tmp_path / "files").mkdir()
    save_file(other, tmp_path / "files" / "open_clip_model.safetensors")
    hub("owner/small", tmp_path / "files", small_files.OTHER)
    monkeypatch.setattr(HubWeights, "find_revision", lambda self: small_files.OTHER)
    found = build_backbone("clip_vit_b32").model.state_dict()
    assert all(torch.equal(found[name], other[name]) for name in other)


def test_dinov2_weights_of_the_hub(hub, tmp_path, monkeypatch):
    from timm.models import _registry, vit_small_patch14_dinov2

    small = partial(vit_small_patch14_dinov2, **TINY_DINOV2)
    monkeypatch.setitem(_registry._model_entrypoints, "vit_small_patch14_dinov2", small)
    expected = small(img_size=518, num_classes=0).state_dict()
    (tmp_path / "files").mkdir()
    save_file(expected, tmp_path / "files" / "model.safetensors")
    hub("timm/vit_small_patch14_dinov2.lvd142m", tmp_path / "files")
    found = build_backbone("dinov2_vit_s14", image_size=518).model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert build_backbone("dinov2_vit_s14", image_size=98).model.pos_embed.shape == (1, 50, 48)
    (tmp_path / "files").mkdir()
    save_file({key: tensor + 1 for key, tensor in expected.items()}, tmp_path / "files" / "model.safetensors")
    hub("timm/vit_small_patch14_dinov2.lvd142m", tmp_path / "files", small_files.OTHER)
    monkeypatch.setattr(HubWeights, "find_revision", lambda self: small_files.OTHER)
    found = build_backbone("dinov2_vit_s14", image_size=518).model.state_dict()
    assert all(torch.equal(found[key], expected[key] + 1) for key in expected)


def photographs():
    """Images of noise: wide, tall, smaller than any model's input, and square."""
    draw = np.random.default_rng(0)
    sizes = ((91, 300), (310, 77), (20, 31), (224, 224))
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("clip_vit_b32", {"device": "meta"}, 224),
        ("clip_vit_b32", {"vision_cfg": TINY_VISION, "text_cfg": TINY_TEXT}, 32),
        ("mini_clip", {}, 48),
    ],
)
def test_preprocessing_of_clip_is_open_clips_to_the_bit(name, options, size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    backbone = build_backbone(name, pretrained=False, **options)
    own = Compose(
        [Resize(size, InterpolationMode.BICUBIC), CenterCrop(size), ToTensor(), Normalize(backbone.mean, backbone.std)]
    )
    _check_transform(backbone, own, size)


@pytest.mark.parametrize("size", [28, 98, 224])
def test_preprocessing_of_dinov2_is_timms_to_the_bit(size):
    import timm

    reference = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=size, **TINY_DINOV2)
    settings = {**timm.data.resolve_model_data_config(reference), "input_size": (3, size, size)}
    backbone = build_backbone("vit_s14_focus", pretrained=False, image_size=size, architecture=TINY_DINOV2)
    _check_transform(backbone, timm.data.create_transform(**settings, is_training=False), size)


def _check_transform(backbone, own, size):
    loaded = pickle.loads(pickle.dumps(backbone.image_transform))
    for image in photographs():
        pixels = backbone.image_transform(image)
        assert pixels.shape == (3, size, size) and pixels.dtype == torch.float32
        assert torch.equal(pixels, own(image)) and torch.equal(pixels, loaded(image))
    assert backbone.image_size == size


def _check_targets(backbone):
    names = [name for name, _ in backbone.model.named_modules()]
    for target in backbone.default_targets:
        stem = target.removesuffix(".in_proj")
        assert any(name.endswith(f".{stem}") for name in names), target
