"""Classifiers on the features of an image model, and the loss that trains them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.experiment.loop.seeding import generator
from randlora_core.image_classification.texts import similarities


class TextHead(nn.Module):
    """Classifies features by the class text that is nearest: (B, E) -> logits (B, classes). Nothing of it is trained.

    It is made from the class names whenever a task is built, so its tensors are left out of the state_dict and a kept
    adapter can be scored on other classes.

    Args:
        texts: An embedding for each class, (classes, E).
        logit_scale: Logarithm of the inverse temperature, a scalar.
    """

    def __init__(self, texts: Tensor, logit_scale: Tensor):
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("logit_scale", logit_scale, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Logits in float32, whatever the autocast."""
        return similarities(features, self.texts, self.logit_scale)


class TrainedHead(nn.Linear):
    """Classifies features by a linear layer without bias, drawn from N(0, 0.01): (B, E) -> logits (B, classes).

    The official code trains the same one beside DINOv2.

    Args:
        embed_dim: Width E of the features.
        num_classes: Classes.
        seed: The run's seed.
    """

    def __init__(self, embed_dim: int, num_classes: int, seed: int):
        super().__init__(embed_dim, num_classes, bias=False)
        # Adapters are drawn from the stream without a counter.
        nn.init.normal_(self.weight, std=0.01, generator=generator(seed, "initialisation", 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits in float32, whatever the autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class ClassificationObjective(nn.Module):
    """Cross-entropy of images over all classes.

    Args:
        model: From images (B, 3, S, S) to features (B, E).
        head: From features to logits (B, classes).
    """

    def __init__(self, model: nn.Module, head: nn.Module):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """The sum of the images' cross-entropies, and their number.

        Args:
            images: (B, 3, S, S).
            labels: (B,).
        """
        return F.cross_entropy(self.head(self.model(images)), labels, reduction="sum"), len(labels)
