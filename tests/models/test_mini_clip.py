import hashlib
import json
import string

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from randlora_core.models import build_backbone
from randlora_core.models.mini_clip import ConvStem, build_towers, load_tokenizer, read_config
from randlora_core.models.pretraining import captions, card, generate
from randlora_core.models.pretraining.vocabulary import learn_merges
from randlora_core.models.tokenizer import Tokenizer, split_words

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


def test_merges_are_learnt_by_frequency_and_never_cross_words():
    merges = learn_merges(["ab cd", "ab cd", "ab"], 4)
    assert merges == [(b" ", b"a"), (b" a", b"b"), (b" ", b"c"), (b" c", b"d")]
    assert split_words("ab cd") == [b" ab", b" cd"]
    assert Tokenizer(merges, 8).encode("ab cd e") == [257, 259, *b" e"]
    with pytest.raises(ValueError, match="give 5 merges, 50"):
        learn_merges(["abcde"], 50)


def test_trained_weights_load_strictly_and_are_those_of_the_card(trained_backbone, random_backbone):
    figures = json.loads(card.FIGURES_FILE.read_text())
    weights = (card.FOLDER / "mini_clip.safetensors").read_bytes()
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
    colours = ("red", "green", "blue", "yellow")
    images = torch.stack([_circle(colour, trained_backbone) for colour in colours])
    with torch.no_grad():
        features = trained_backbone.model.encode_image(images)
        tokens = trained_backbone.tokenize([f"a {colour} circle on a white background" for colour in colours])
        texts = trained_backbone.model.encode_text(tokens)
    similarity = torch.nn.functional.cosine_similarity(features[:, None], texts[None], dim=-1)
    assert similarity.argmax(1).tolist() == [0, 1, 2, 3]


def _circle(colour, backbone):
    image = Image.new("RGB", (backbone.image_size,) * 2, "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=captions.COLOURS[colour])
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


def test_drawings_follow_seed_and_index():
    for index in range(30):
        first, again = generate.draw(5, index), generate.draw(5, index)
        assert first.caption == again.caption and first.name == again.name
        assert np.array_equal(first.image, again.image)
        assert first.image.shape == (64, 64, 3) and first.name in generate.names()
    assert not np.array_equal(generate.draw(5, 0).image, generate.draw(6, 0).image)


def test_drawings_use_no_held_out_character_or_font():
    from randlora_core.datasets import characters

    assert not set(generate.SYMBOLS) & {*characters.CHARACTERS, *string.ascii_letters, *string.digits}
    assert not set(generate.FONTS) & set(characters.FONTS)
    assert len(set(generate.SYMBOLS)) == len(generate.SYMBOLS)


def test_drawn_symbols_do_not_look_like_latin_letters_or_digits():
    held_out = string.ascii_letters + string.digits
    for font in (*generate.FONTS, "DejaVuSans.ttf"):
        letters = np.stack([_outline(character, font) for character in held_out])
        symbols = np.stack([_outline(character, font) for character in generate.SYMBOLS])
        nearest = (symbols @ letters.T).max(1)
        worst = int(nearest.argmax())
        assert nearest[worst] < 0.8, (font, generate.SYMBOLS[worst])


def _outline(character, font):
    """A character cut out, centred in a square and scaled to 24 pixels, as a vector of mean 0 and length 1."""
    image = Image.new("L", (200, 200))
    ImageDraw.Draw(image).text((60, 40), character, font=generate.load_font(font, 64), fill=255)
    image = image.crop(image.getbbox())
    side = max(image.size)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    vector = np.asarray(square.resize((24, 24), Image.Resampling.BOX), float).ravel()
    vector -= vector.mean()
    return vector / np.linalg.norm(vector)


def test_card_shows_the_figures():
    figures = json.loads(card.FIGURES_FILE.read_text())
    text = card.CARD_FILE.read_text()
    assert card.replace_tables(text, card.render_tables(figures)) == text
    with pytest.raises(ValueError, match="figures"):
        card.replace_tables("no marks", "")
