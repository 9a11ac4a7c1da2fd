import pytest
import torch

from randlora_core.models import BACKBONES, build_backbone

TINY_VISION = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
TINY_TEXT = {"layers": 2, "width": 32, "heads": 2, "context_length": 16}


def test_unknown_backbone_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'resnet'.*mini_clip.*clip_vit_b32.*dinov2_vit_b14"):
        build_backbone("resnet")


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
    tiny = build_backbone(
        "dinov2_vit_b14", pretrained=False, image_size=28, architecture={"depth": 2, "embed_dim": 48, "num_heads": 3}
    )
    assert tiny.model(torch.randn(2, 3, 28, 28)).shape == (2, 48) and tiny.embed_dim == 48
    assert tiny.kind == "vision" and tiny.tokenize is None and tiny.mean == (0.485, 0.456, 0.406)
    _check_targets(tiny)
    full = build_backbone("dinov2_vit_b14", pretrained=False, device="meta")
    count = sum(parameter.numel() for parameter in full.model.parameters())
    assert (full.embed_dim, full.image_size) == (768, 224)
    # Published: 86,580,480 with a mask token (timm has none) and a position table of 1,369 + 1 rows (here 256 + 1).
    assert count == 86_580_480 - 768 - (1370 - 257) * 768


@pytest.mark.parametrize(("name", "option"), [("clip_vit_b32", "vision_cfg"), ("dinov2_vit_b14", "architecture")])
def test_trained_weights_do_not_fit_another_architecture(name, option):
    with pytest.raises(ValueError, match=rf"{name}: pretrained=True fits neither"):
        build_backbone(name, pretrained=True, **{option: {"layers": 1}})


def test_image_size_of_dinov2_must_be_a_multiple_of_its_patch():
    with pytest.raises(ValueError, match="multiple of 14, not 100"):
        build_backbone("dinov2_vit_b14", pretrained=False, image_size=100)


def test_weights_that_cannot_be_had_are_one_clear_line(monkeypatch):
    import open_clip
    import timm

    def fail(*_arguments, **_options):
        raise RuntimeError("no route to host\nwith a long story")

    monkeypatch.setattr(open_clip, "create_model", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    for name in ("clip_vit_l14", "dinov2_vit_b14"):
        with pytest.raises(OSError, match=f"^{name}: .*no route to host") as caught:
            build_backbone(name)
        assert "\n" not in str(caught.value)


def _check_targets(backbone):
    names = [name for name, _ in backbone.model.named_modules()]
    for target in backbone.default_targets:
        stem = target.removesuffix(".in_proj")
        assert any(name.endswith(f".{stem}") for name in names), target
