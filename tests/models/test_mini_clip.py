import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from randlora_core.models import build_backbone
from randlora_core.models.mini_clip import FOLDER, ConvStem, build_towers, load_tokenizer, read_config

WORDS = ("a photo of a golden retriever", "rough / bumpy road, 20 kph", "naïve café", "日本 🦊", "x" * 20)


@pytest.fixture(scope="module")
def random_backbone():
    return build_backbone("mini_clip", pretrained=False)


@pytest.fixture(scope="module")
def trained_backbone():
    return build_backbone("mini_clip")


@pytest.mark.parametrize("text", WORDS)
def test_every_text_survives_the_tokenizer(text):
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer([text])[0].tolist()) == text


def test_case_underscores_and_spaces_are_normalised():
    tokenizer = load_tokenizer()
    assert tokenizer.encode("  Grand_Piano ") == tokenizer.encode("grand piano")


def test_rows_begin_with_start_and_end_with_the_highest_id():
    tokenizer = load_tokenizer()
    rows = tokenizer(["cat", "x1" * 200])
    assert rows.shape == (2, read_config()["text_cfg"]["context_length"]) and rows.dtype == torch.long
    assert tokenizer.end_id == tokenizer.vocab_size - 1 == read_config()["text_cfg"]["vocab_size"] - 1
    assert (rows[:, 0] == tokenizer.start_id).all()
    assert rows.argmax(-1).tolist() == [len(tokenizer.encode("cat")) + 1, rows.shape[1] - 1]


def test_common_words_are_few_tokens_and_unknown_bytes_are_bytes():
    tokenizer = load_tokenizer()
    assert len(tokenizer.encode("a photo of a")) == 4
    assert tokenizer.encode("日") == [*b" ", *"日".encode()]


def test_trained_weights_load_strictly_and_are_those_of_the_card(trained_backbone, random_backbone):
    figures = json.loads((FOLDER / "mini_clip_card.json").read_text())
    weights = (FOLDER / "mini_clip.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == figures["weights_file_sha256"]
    assert 3e6 < len(weights) < 8.4e6
    trained, drawn = trained_backbone.model.state_dict(), random_backbone.model.state_dict()
    assert not any(torch.equal(trained[name], drawn[name]) for name in trained if trained[name].ndim > 1)
    assert all(parameter.dtype == torch.float32 for parameter in trained_backbone.model.parameters())


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.safetensors"):
        build_backbone("mini_clip", weights=tmp_path / "absent.safetensors")


def test_towers_map_to_one_space_and_targets_exist(random_backbone):
    model, size = random_backbone.model, random_backbone.image_size
    images = model.encode_image(torch.randn(2, 3, size, size))
    texts = model.encode_text(random_backbone.tokenize(["a cat", "a dog", "a tree"]))
    assert images.shape == (2, random_backbone.embed_dim) and texts.shape == (3, random_backbone.embed_dim)
    modules = dict(model.named_modules())
    for target in random_backbone.default_targets:
        stem = target.removesuffix(".in_proj")
        assert any(name.endswith(f".{stem}") for name in modules), target
    assert isinstance(modules["visual.transformer.resblocks.0.attn"], torch.nn.MultiheadAttention)
    assert isinstance(modules["transformer.resblocks.0.attn"], torch.nn.MultiheadAttention)


def test_trained_model_tells_drawn_things_apart(trained_backbone):
    """Colours and shapes were in pre-training: random weights would score at chance, one in four."""
    colours = {"red": (210, 30, 35), "green": (40, 150, 60), "blue": (35, 80, 200), "yellow": (245, 220, 40)}
    images = torch.stack([_circle(colour, trained_backbone) for colour in colours.values()])
    with torch.no_grad():
        features = trained_backbone.model.encode_image(images)
        tokens = trained_backbone.tokenize([f"a {colour} circle on a white background" for colour in colours])
        texts = trained_backbone.model.encode_text(tokens)
    similarity = torch.nn.functional.cosine_similarity(features[:, None], texts[None], dim=-1)
    assert similarity.argmax(1).tolist() == [0, 1, 2, 3]


def _circle(colour, backbone):
    image = Image.new("RGB", (backbone.image_size,) * 2, "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=colour)
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(backbone.mean).view(3, 1, 1)) / torch.tensor(backbone.std).view(3, 1, 1)


def test_folded_stem_is_the_same_function():
    torch.manual_seed(0)
    stem = ConvStem(12, (4, 6), batch_norm=True)
    images = torch.randn(8, 3, 32, 32)
    for _ in range(3):
        stem(images * 2 + 1)
    for module in stem:
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    folded = stem.eval().fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded)
    # fp32 rounding through three convolutions
    torch.testing.assert_close(folded(images), stem(images), rtol=1e-4, atol=1e-4)
    assert folded(images).shape == (8, 12, 4, 4)
    assert build_towers(read_config()).visual.conv1.state_dict().keys() == _stem_keys(3)


def _stem_keys(count):
    return {f"conv{index}.{kind}" for index in range(count) for kind in ("weight", "bias")}
