import numpy as np
import pytest
import torch
from torch import nn

from randlora_core.image_classification.prediction import compute_features, score_images

CPU = torch.device("cpu")


def loader():
    images = torch.randn(11, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return images, [(images[:6], torch.arange(6) % 4), (images[6:], torch.arange(6, 11) % 4)]


def test_the_most_likely_class_of_every_image_is_scored():
    torch.manual_seed(0)
    weight = torch.randn(48, 4)
    images, batches = loader()
    score = score_images(lambda batch: batch.flatten(1) @ weight, batches, CPU, "fp32")
    expected = (images.flatten(1) @ weight).argmax(1)
    labels = torch.arange(11) % 4
    assert np.array_equal(score.predicted, expected) and np.array_equal(score.labels, labels)
    assert score.value == pytest.approx(float((expected == labels).double().mean())) and score.size == 11
    assert 0 < score.value < 1 and not score.details


def test_nothing_of_the_evaluation_is_kept_for_a_backward():
    layer = nn.Linear(48, 4)
    seen = []

    def classify(batch):
        seen.append(layer(batch.flatten(1)))
        return seen[-1]

    score_images(classify, loader()[1], CPU, "fp32")
    assert not any(logits.requires_grad for logits in seen)


def test_features_are_float32_in_the_order_of_the_images():
    torch.manual_seed(0)
    weight = torch.randn(48, 5)
    images, batches = loader()
    features, labels = compute_features(lambda batch: batch.flatten(1) @ weight, batches, CPU, "fp32")
    assert torch.allclose(features, images.flatten(1) @ weight) and features.dtype == torch.float32
    assert torch.equal(labels, torch.arange(11) % 4)


def test_the_number_format_of_the_run_is_the_evaluations():
    weight = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))
    _, batches = loader()
    seen = []

    def encode(batch):
        seen.append((batch.flatten(1) @ weight).dtype)
        return batch.flatten(1) @ weight

    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        features, _ = compute_features(encode, batches, CPU, precision)
        assert seen[-1] == dtype and features.dtype == torch.float32
