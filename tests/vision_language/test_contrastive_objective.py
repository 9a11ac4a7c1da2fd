import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from vision_language.evaluation import accuracy, class_embeddings, class_tokens, predict

from vision_language.objective import ContrastiveObjective, ProbeObjective, TextBatches, similarities

CPU = torch.device("cpu")


class TinyClip(nn.Module):
    """Linear towers: images (B, 3, 4, 4) and token vectors (C, 5) to 6 features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(48, 6), nn.Linear(5, 6)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def encode_image(self, images):
        return self.image(images.flatten(1))

    def encode_text(self, tokens):
        return self.text(tokens.float())


def oracle_logits(model, images, tokens):
    """Cosine similarities times the inverse temperature, entry by entry in float64."""
    rows = model.encode_image(images).double().tolist()
    columns = model.encode_text(tokens).double().tolist()
    cosine = [[np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)) for b in columns] for a in rows]
    return torch.tensor(cosine, dtype=torch.float64) * 20.0


def test_the_loss_is_cross_entropy_over_the_given_texts():
    model = TinyClip()
    images, tokens, targets = torch.randn(7, 3, 4, 4), torch.randint(0, 9, (4, 5)), torch.tensor([0, 3, 1, 1, 2, 0, 3])
    logits = oracle_logits(model, images, tokens)
    expected = -sum(float(row[t] - row.exp().sum().log()) for row, t in zip(logits, targets, strict=True)) / 7
    assert ContrastiveObjective(model)(images, tokens, targets).item() == pytest.approx(expected, rel=1e-5)


def test_logits_are_float32_under_autocast():
    images, texts = torch.randn(3, 6), torch.randn(4, 6)
    expected = similarities(images, texts, torch.tensor(math.log(100.0)))
    with torch.autocast("cpu", torch.bfloat16):
        got = similarities(images, texts, torch.tensor(math.log(100.0)))
    assert got.dtype == torch.float32 and torch.equal(got, expected)


class Labels:
    """Micro-batches with given labels."""

    def __init__(self, *labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.zeros(len(self.labels[index]), 3, 4, 4), torch.tensor(self.labels[index])


def test_in_batch_takes_the_distinct_classes_of_the_micro_batch():
    tokens = torch.arange(10)[:, None].expand(10, 5)
    batches = TextBatches(Labels([7, 2, 7, 7, 5], [1, 1, 1, 1, 1]), tokens, every_class=False)
    _, texts, targets = batches[0]
    assert texts[:, 0].tolist() == [2, 5, 7]
    assert texts[targets][:, 0].tolist() == [7, 2, 7, 7, 5]
    assert batches[1][1][:, 0].tolist() == [1] and len(batches) == 2
    _, texts, targets = TextBatches(Labels([7, 2]), tokens, every_class=True)[0]
    assert torch.equal(texts, tokens) and targets.tolist() == [7, 2]


def test_the_probe_trains_its_head_only_and_starts_undecided():
    probe = ProbeObjective(TinyClip().requires_grad_(False), 6, 3)
    images, labels = torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 2, 2, 1])
    loss = probe(images, labels)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    assert {name for name, p in probe.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}
    probe.train()
    assert probe.head.training and not probe.model.training
    with torch.no_grad():
        probe.head.weight.normal_()
        features = probe.model.encode_image(images)
        scaled = features / features.pow(2).mean(dim=1, keepdim=True).sqrt()
        assert torch.allclose(probe.logits(images), probe.head(scaled), atol=1e-5)


def test_class_embeddings_average_normalised_templates():
    model = TinyClip()
    tokens = torch.randint(0, 9, (3, 4, 5))
    features = [model.encode_text(part) for part in tokens]
    mean = sum(f / f.norm(dim=1, keepdim=True) for f in features) / 3
    expected = mean / mean.norm(dim=1, keepdim=True)
    assert torch.allclose(class_embeddings(model, tokens, CPU, "fp32"), expected, atol=1e-6)


def test_tokens_are_ordered_by_template_then_class():
    texts = []
    backbone = SimpleNamespace(
        model=None, tokenize=lambda given: texts.extend(given) or torch.arange(len(given))[:, None]
    )
    tokens = class_tokens(backbone, ["cat", "dog"], ["a {}.", "one {}", "{}"])
    assert tokens.shape == (3, 2, 1)
    assert texts[int(tokens[1, 0])] == "one cat" and texts[int(tokens[2, 1])] == "dog"


def test_predictions_are_the_nearest_texts():
    objective = ContrastiveObjective(TinyClip())
    images, labels, tokens = torch.randn(11, 3, 4, 4), torch.arange(11) % 4, torch.randint(0, 9, (1, 4, 5))
    loader = [(images[:6], labels[:6]), (images[6:], labels[6:])]
    objective.train()
    predicted, truth = predict(objective, loader, tokens, CPU)
    expected = oracle_logits(objective.model, images, tokens[0]).argmax(dim=1)
    assert torch.equal(predicted, expected) and torch.equal(truth, labels)
    assert objective.training
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 0.75
