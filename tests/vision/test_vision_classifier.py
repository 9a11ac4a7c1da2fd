"""The heads and the loss on their own."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from randlora_core.experiment.loop.seeding import generator
from vision.classifier import ClassificationObjective, TextHead, TrainedHead


def text_head(num_classes=4):
    texts = torch.randn(num_classes, 6, generator=torch.Generator().manual_seed(1))
    return TextHead(texts, torch.tensor(math.log(20.0)))


def test_a_text_head_gives_cosine_similarities_times_the_inverse_temperature():
    head, features = text_head(), torch.randn(5, 6)
    expected = 20 * F.cosine_similarity(features.double()[:, None], head.texts.double()[None], dim=-1)
    assert torch.allclose(head(features).double(), expected, atol=1e-5)


def test_a_text_head_has_nothing_to_train_and_nothing_to_keep():
    head = text_head()
    assert list(head.parameters()) == [] and head.state_dict() == {}
    assert {name for name, _ in head.named_buffers()} == {"texts", "logit_scale"}  # which go where the model goes


def test_a_trained_head_begins_as_in_the_official_code():
    head = TrainedHead(500, 40, seed=3)
    assert head.bias is None and head.weight.shape == (40, 500)
    assert abs(float(head.weight.detach().mean())) < 4 * 0.01 / math.sqrt(20_000)  # four standard errors
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.02)  # its standard error is 0.5 %


def test_a_trained_head_is_drawn_from_the_runs_seed_apart_from_the_adapters():
    torch.rand(3)
    first, again, other = (TrainedHead(6, 4, seed=seed).weight for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    adapters = 0.01 * torch.randn(4, 6, generator=generator(3, "initialisation"))
    assert not torch.allclose(first, adapters)


@pytest.mark.parametrize("head", [text_head(), TrainedHead(6, 4, seed=0)])
def test_logits_are_float32_under_autocast(head):
    features = torch.randn(5, 6)
    expected = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features)
        halved = head(features.bfloat16())
    assert found.dtype == halved.dtype == torch.float32
    assert torch.equal(found, expected) and torch.equal(halved, head(features.bfloat16().float()))


@pytest.mark.parametrize("head", [text_head(), TrainedHead(6, 4, seed=0)])
def test_the_loss_is_the_summed_cross_entropy_over_all_classes_and_the_number_of_images(head):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    images, labels = torch.randn(7, 3, 4, 4), torch.tensor([0, 3, 1, 1, 2, 0, 3])
    total, count = ClassificationObjective(model, head)(images, labels)
    logits = head(model(images)).double()
    expected = -sum(
        float((row[label] - row.exp().sum().log()).detach()) for row, label in zip(logits, labels, strict=True)
    )
    assert total.item() == pytest.approx(expected, rel=1e-5) and count == 7
