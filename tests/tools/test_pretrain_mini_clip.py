import io
import json
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from randlora_core.datasets import characters
from randlora_core.models import build_backbone
from randlora_core.models.mini_clip import load_tokenizer
from randlora_core.models.tokenizer import Tokenizer, split_words
from tools.pretrain_mini_clip import card, generate, probe
from tools.pretrain_mini_clip.augment import Augmentation, augment
from tools.pretrain_mini_clip.batches import Batches, Mixture
from tools.pretrain_mini_clip.data import HELD_OUT, NATURAL, clean_name, read_emoji, read_natural
from tools.pretrain_mini_clip.train import Pretraining, Recipe, Trainer, compute_losses, learning_rate_at
from tools.pretrain_mini_clip.vocabulary import learn_merges

SMALL = Recipe(mixture=Mixture(natural=6, emoji=2, generated=4, pool=8), warmup_steps=2)


def _encoded(random):
    pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _write_split(folder: Path, names, count, random):
    folder.mkdir(parents=True)
    labels = [index % len(names) for index in range(count)]
    table = pa.table({"image": [_encoded(random) for _ in labels], "label": labels})
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    for split in ("train", "test"):
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    names = {
        "tiny_imagenet": ["goldfish", "snail"],
        "imagenette": ["n03028079_church"],
        "cifar100": ["snail", "oak_tree"],
    }
    for dataset in NATURAL:
        _write_split(root / "images" / dataset, names.get(dataset, ["cat", "dog"]), 6, random)
    (root / "emoji").mkdir()
    rows = [("red heart", "heart"), ("fox", "animal"), ("keycap 1", "keycap"), ("squared ok", "alphanum")]
    columns = {"image": [_encoded(random) for _ in rows], "caption": [r[0] for r in rows]}
    parquet.write_table(
        pa.table({**columns, "subcategory": [r[1] for r in rows]}), root / "emoji" / "train-00000-of-00001.parquet"
    )
    return root


@pytest.fixture(scope="module")
def batches(data):
    return Batches(data, SMALL.mixture, seed=0, workers=1)


def test_reading_merges_equal_names_and_leaves_latin_drawings_out(data):
    natural, emoji = read_natural(data), read_emoji(data)
    assert natural.vocabulary == ("goldfish", "snail", "oak tree", "cat", "dog", "church")
    assert natural.images.shape == (24, 64, 64, 3)
    assert np.bincount(natural.names).tolist() == [3, 6, 3, 3, 3, 6]
    assert emoji.vocabulary == ("fox", "red heart") and len(emoji.images) == 2
    assert clean_name("028_stemless_gentian") == "stemless gentian"


def test_pretraining_never_reads_a_held_out_set():
    assert not set(NATURAL) & set(HELD_OUT)


def test_batches_are_a_function_of_the_step_and_name_what_they_show(batches):
    batch, again, other = batches(3), batches(3), batches(4)
    assert torch.equal(batch.images, again.images) and batch.captions == again.captions
    assert not torch.equal(batch.images, other.images)
    assert batch.images.shape == (12, 64, 64, 3) and batch.natural.tolist() == [True] * 6 + [False] * 6
    assert len(set(batch.captions)) == len(batch.captions)
    for row in range(8):
        name = batches.class_names[int(batch.label[row])]
        assert name in batch.captions[int(batch.caption_of[row])]


def test_one_pass_shows_every_photograph_once(batches):
    shown = torch.cat([batches(step).images[:6] for step in range(4)]).flatten(1)
    assert len(torch.unique(shown, dim=0)) == 24


def test_augmentation_flips_photographs_only_and_follows_its_generator():
    images = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    images[:, :, :32] = 255
    natural = torch.arange(64) < 32
    ranges = Augmentation(colour=0.0, warp=0.0)
    result = augment(images, natural, 48, ranges, torch.Generator().manual_seed(0))
    again = augment(images, natural, 48, ranges, torch.Generator().manual_seed(0))
    assert torch.equal(result, again) and result.shape == (64, 3, 48, 48)
    left_is_brighter = result[..., :24].mean((1, 2, 3)) > result[..., 24:].mean((1, 2, 3))
    assert left_is_brighter[32:].all()
    assert 4 < left_is_brighter[:32].sum() < 28
    coloured = augment(images, natural, 48, Augmentation(), torch.Generator().manual_seed(0))
    assert coloured.min() >= 0 and coloured.max() <= 1 and not torch.equal(coloured, result)


def test_text_features_are_those_of_open_clip():
    model, tokens = Pretraining(3, seed=0), load_tokenizer()(["a", "a photo of a golden retriever", "snail", "x" * 60])
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        # fp32 rounding: only the padding differs
        torch.testing.assert_close(model.encode_text(tokens), model.clip.encode_text(tokens), rtol=1e-4, atol=1e-4)


def test_losses_are_cross_entropies_over_distinct_captions(batches):
    model, batch = Pretraining(len(batches.class_names), seed=0).eval(), batches(0)
    recipe = Recipe(label_smoothing=0.0)
    pixels = batch.images.permute(0, 3, 1, 2)[..., ::2, ::2].float()[..., :48, :48] / 255
    pixels = torch.nn.functional.interpolate(pixels, size=(48, 48))
    with torch.no_grad():
        found = compute_losses(model, load_tokenizer(), batch, pixels, recipe)
        images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
        texts = torch.nn.functional.normalize(model.encode_text(load_tokenizer()(batch.captions)), dim=-1)
    similarity = (model.clip.logit_scale.exp() * images @ texts.T).double()
    rows = range(len(images))
    to_text = -np.mean([similarity.log_softmax(1)[row, batch.caption_of[row]].item() for row in rows])
    to_image = -np.mean(
        [
            np.mean([similarity.log_softmax(0)[row, text].item() for row in rows if batch.caption_of[row] == text])
            for text in range(len(batch.captions))
        ]
    )
    # bf16 features
    assert found[0].item() == pytest.approx((to_text + to_image) / 2, rel=0.02)


def test_schedule_warms_up_and_ends_at_zero():
    assert learning_rate_at(SMALL, 0, 0.0) == SMALL.learning_rate / 2
    assert learning_rate_at(SMALL, 10, 0.5) == pytest.approx(SMALL.learning_rate / 2)
    assert learning_rate_at(SMALL, 10, 1.2) == 0


@pytest.mark.slow
def test_interrupted_training_goes_on_to_the_same_weights(batches, tmp_path):
    whole = Trainer(SMALL, batches, tmp_path / "whole", steps=4, minutes=None)
    whole.run()
    first = Trainer(SMALL, batches, tmp_path / "parts", steps=4, minutes=None)
    first.train_step()
    first.train_step()
    first.save()
    second = Trainer(SMALL, batches, tmp_path / "parts", steps=4, minutes=None)
    assert second.step == 2
    second.run()
    weights, resumed = (load_file(tmp_path / part / "mini_clip.safetensors") for part in ("whole", "parts"))
    assert weights.keys() == build_backbone("mini_clip", pretrained=False).model.state_dict().keys()
    for name, tensor in weights.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, resumed[name]), name
    assert not torch.equal(weights["positional_embedding"], Pretraining(1, 0).clip.positional_embedding.bfloat16())


def test_probe_scores_the_test_split_with_the_strength_chosen_in_training():
    random = np.random.default_rng(0)
    labels = np.arange(200) % 4
    features = np.eye(4)[labels] + 0.1 * random.standard_normal((200, 4))
    splits = probe.LabelledImages(None, labels[:100], None, labels[100:], ("a", "b", "c", "d"))
    for fit in (probe.fit_logistic, probe.fit_ridge):
        result = probe.measure_linear(fit, (1e-3, 1.0), features[:100], features[100:], splits)
        assert result["accuracy"] == 1.0 and result["strength"] in (1e-3, 1.0)
        shuffled = probe.measure_linear(fit, (1.0,), features[:100], random.permutation(features[100:]), splits)
        assert shuffled["accuracy"] < 0.6


def test_card_says_when_the_aim_is_missed():
    row = {key: {"accuracy": value} for key, value in zip(("probe", "probe_random_tower"), (0.30, 0.15), strict=True)}
    row |= {"ridge_on_pixels": {"accuracy": 0.19}, "zero_shot": 0.05, "chance": 0.01}
    figures = {"datasets": dict.fromkeys(card.CRITERION_SETS, row)}
    assert card.margins(figures) == pytest.approx((15, 11)) and card.is_met(figures)
    assert not card.is_met({"datasets": dict.fromkeys(card.CRITERION_SETS, row | {"zero_shot": 0.02})})
    close = row | {"ridge_on_pixels": {"accuracy": 0.21}}
    assert not card.is_met({"datasets": dict.fromkeys(card.CRITERION_SETS, close)})


def test_merges_are_learnt_by_frequency_and_never_cross_words():
    merges = learn_merges(["ab cd", "ab cd", "ab"], 4)
    assert merges == [(b" ", b"a"), (b" a", b"b"), (b" ", b"c"), (b" c", b"d")]
    assert split_words("ab cd") == [b" ab", b" cd"]
    assert Tokenizer(merges, 8).encode("ab cd e") == [257, 259, *b" e"]
    with pytest.raises(ValueError, match="give 5 merges, 50"):
        learn_merges(["abcde"], 50)


def test_drawings_follow_seed_and_index():
    for index in range(30):
        first, again = generate.draw(5, index), generate.draw(5, index)
        assert first.caption == again.caption and first.name == again.name
        assert np.array_equal(first.image, again.image)
        assert first.image.shape == (64, 64, 3) and first.name in generate.names()
    assert not np.array_equal(generate.draw(5, 0).image, generate.draw(6, 0).image)


def test_drawings_use_no_held_out_character_or_font():
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
