import math
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from randlora_core.image_classification import texts as class_texts
from randlora_core.image_classification.texts import class_embeddings, class_tokens, similarities

CPU = torch.device("cpu")


class TextTower(nn.Module):
    """A linear layer from token vectors (C, 5) to 6 features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.text = nn.Linear(5, 6)

    def encode_text(self, tokens):
        return self.text(tokens.float())


def test_similarities_are_scaled_cosines():
    images, texts = torch.randn(3, 6), torch.randn(4, 6)
    expected = 20 * F.cosine_similarity(images.double()[:, None], texts.double()[None], dim=-1)
    assert torch.allclose(similarities(images, texts, torch.tensor(math.log(20.0))).double(), expected, atol=1e-5)


def test_logits_are_float32_under_autocast():
    images, texts = torch.randn(3, 6), torch.randn(4, 6)
    expected = similarities(images, texts, torch.tensor(math.log(100.0)))
    with torch.autocast("cpu", torch.bfloat16):
        got = similarities(images, texts, torch.tensor(math.log(100.0)))
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_class_embeddings_average_normalised_templates():
    model = TextTower()
    tokens = torch.randint(0, 9, (3, 4, 5))
    features = [model.encode_text(part) for part in tokens]
    mean = sum(f / f.norm(dim=1, keepdim=True) for f in features) / 3
    expected = mean / mean.norm(dim=1, keepdim=True)
    assert torch.allclose(class_embeddings(model, tokens, CPU, "fp32"), expected, atol=1e-6)


def test_many_texts_are_encoded_in_several_passes(monkeypatch):
    model = TextTower()
    tokens = torch.randint(0, 9, (3, 4, 5))
    whole = class_embeddings(model, tokens, CPU, "fp32")
    passes, plain = [], class_texts.encode_text

    def counted(model, part):
        passes.append(len(part))
        return plain(model, part)

    monkeypatch.setattr(class_texts, "TEXTS_PER_PASS", 5)
    monkeypatch.setattr(class_texts, "encode_text", counted)
    assert torch.allclose(class_embeddings(model, tokens, CPU, "fp32"), whole, atol=1e-6)
    assert passes == [5, 5, 2]


def test_tokens_are_ordered_by_template_then_class():
    texts = []
    backbone = SimpleNamespace(
        model=None, tokenize=lambda given: texts.extend(given) or torch.arange(len(given))[:, None]
    )
    tokens = class_tokens(backbone, ["cat", "dog"], ["a {}.", "one {}", "{}"])
    assert tokens.shape == (3, 2, 1)
    assert texts[int(tokens[1, 0])] == "one cat" and texts[int(tokens[2, 1])] == "dog"
