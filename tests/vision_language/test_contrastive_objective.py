import math

import numpy as np
import pytest
import torch
from tiny_clip import TinyClip
from torch.nn import functional as F

from vision_language.objective import ContrastiveObjective, TextBatches


def oracle_logits(model, images, tokens):
    """Cosine similarities times the inverse temperature, entry by entry in float64."""
    rows = model.encode_image(images).double().tolist()
    columns = model.encode_text(tokens).double().tolist()
    cosine = [[np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)) for b in columns] for a in rows]
    return torch.tensor(cosine, dtype=torch.float64) * 20.0


def test_the_loss_is_the_summed_cross_entropy_over_the_given_texts_and_their_number():
    model = TinyClip()
    images, tokens, targets = torch.randn(7, 3, 4, 4), torch.randint(0, 9, (4, 5)), torch.tensor([0, 3, 1, 1, 2, 0, 3])
    logits = oracle_logits(model, images, tokens)
    expected = -sum(float(row[t] - row.exp().sum().log()) for row, t in zip(logits, targets, strict=True))
    total, count = ContrastiveObjective(model)(images, tokens, targets)
    assert total.item() == pytest.approx(expected, rel=1e-5) and count == 7


def test_in_batch_a_class_counts_once_however_often_it_occurs():
    """Sum over count is the mean cross-entropy over the distinct classes of the micro-batch."""
    model = TinyClip()
    labels, texts = [7, 2, 7, 7, 5], torch.randint(0, 9, (10, 5))
    images, tokens, targets = TextBatches(Labels(labels), texts, every_class=False)[0]
    images = torch.randn_like(images)
    total, count = ContrastiveObjective(model)(images, tokens, targets)
    logits = oracle_logits(model, images, texts[[2, 5, 7]]).float()
    expected = F.cross_entropy(logits, torch.tensor([2, 0, 2, 2, 1]))
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-5)
    with_duplicates = F.cross_entropy(oracle_logits(model, images, texts[labels]).float(), torch.arange(5))
    assert (total / count).item() != pytest.approx(with_duplicates.item(), rel=1e-2)


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
