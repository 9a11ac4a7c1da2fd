"""Texts without their padding have the features of padded ones."""

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from randlora_core import RandLoRAConfig, inject_adapter
from randlora_core.models import build_backbone
from randlora_core.models.text_tower import encode_text, shorten

TEXTS = ["a", "a photo of a golden retriever", "snail"]


@pytest.fixture
def backbone():
    return build_backbone("mini_clip")


def test_padding_of_all_texts_is_cut_and_nothing_else(backbone):
    tokens = backbone.tokenize(TEXTS)
    short = shorten(backbone.model, tokens)
    longest = max(len(backbone.tokenize.encode(text)) for text in TEXTS) + 2
    assert short.shape == (3, longest) and longest < tokens.shape[1]
    assert torch.equal(short, tokens[:, :longest]) and not tokens[:, longest:].any()


def test_features_and_gradients_are_those_of_the_padded_texts(backbone):
    model = inject_adapter(
        backbone.model, RandLoRAConfig(rank=16), backbone.default_targets, trainable=("positional_embedding",)
    )
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = {name: parameter for name, parameter in trained.items() if not name.startswith("visual.")}
    assert "positional_embedding" in trained and len(trained) > 20
    tokens = backbone.tokenize(TEXTS)
    found = []
    for features in (model.encode_text(tokens), encode_text(model, shorten(model, tokens))):
        found.append((features, *torch.autograd.grad(features.square().sum(), list(trained.values()))))
    assert all(gradient.abs().sum() > 0 for gradient in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(encode_text(model, tokens), model.encode_text(tokens))
    assert model.positional_embedding.shape[0] == tokens.shape[1]  # the model is as it was


def test_a_tower_that_looks_ahead_keeps_its_padding():
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"layers": 1, "width": 32, "heads": 2, "context_length": 9, "vocab_size": 20}
    tokens = torch.tensor([[18, 3, 19, 0, 0, 0, 0, 0, 0]])
    for changed in ({"no_causal_mask": True}, {"pool_type": "last"}):
        model = CLIP(16, vision, {**text, **changed})
        assert shorten(model, tokens) is tokens
        assert torch.equal(encode_text(model, tokens), model.encode_text(tokens))
    assert shorten(nn.Linear(2, 2), tokens) is tokens
    assert shorten(CLIP(16, vision, text), tokens).shape == (1, 3)
