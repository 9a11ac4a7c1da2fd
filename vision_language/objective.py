"""What is minimised: the cross-entropy of images over the texts of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from randlora_core.experiment.loop.distributed import gather_rows
from randlora_core.image_classification.batches import ImageBatches
from randlora_core.image_classification.texts import similarities
from randlora_core.models.text_tower import encode_text


class ContrastiveObjective(nn.Module):
    """Cross-entropy of images over texts, both towers trained (RandLoRA's experiments on full CLIP).

    With the distinct classes of the micro-batch as texts it is the in-batch objective, with all classes the class-wise
    one. The official code keeps duplicate texts in the denominator and multiplies by the raw logarithm of the
    temperature; here neither is done.

    Args:
        model: CLIP with encode_image, encode_text and logit_scale.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, tokens: Tensor, targets: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The sum of the images' cross-entropies, and their number.

        Args:
            images: (B, 3, S, S).
            tokens: Texts (C, context), or as short as `shorten` makes them.
            targets: Index of each image's text, (B,).
            classes: Where several processes share a micro-batch, the classes of all its texts, of which `tokens` are
                this process's: their features are gathered from all processes. Only its length is used, which is
                known without waiting for the device.
        """
        image_features, text_features = self.model.encode_image(images), encode_text(self.model, tokens)
        if classes is not None:
            text_features = gather_rows(text_features)[: len(classes)]
        logits = similarities(image_features, text_features, self.model.logit_scale)
        return F.cross_entropy(logits, targets, reduction="sum"), len(targets)


class TextBatches(Dataset):
    """Micro-batches of images with the texts they are contrasted with: (images, tokens, targets).

    The distinct classes are found here, on the CPU, so that training never waits for the accelerator to count them.
    A shard has a part of a micro-batch's images and of its texts, the last of them repeated until every process has as
    many; the classes of all texts follow as a fourth tensor.

    Args:
        images: Micro-batches of images and labels.
        tokens: One text per class, (classes, context).
        every_class: Give the texts of all classes instead of those of the micro-batch.
        part: Which part of a micro-batch's texts to give, and of how many.
    """

    def __init__(self, images: ImageBatches, tokens: Tensor, *, every_class: bool, part: tuple[int, int] = (0, 1)):
        self.images, self.tokens, self.every_class, self.part = images, tokens, every_class, part

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        images, labels = self.images[index]
        part, parts = self.part
        if self.every_class:
            classes, targets = torch.arange(len(self.tokens)), labels
        else:
            classes = (labels if parts == 1 else self.images.whole_labels(index)).unique()
            targets = torch.searchsorted(classes, labels)
        if parts == 1:
            return images, self.tokens[classes], targets
        share = -(-len(classes) // parts)
        rows = torch.arange(part * share, (part + 1) * share).clamp(max=len(classes) - 1)
        return images, self.tokens[classes[rows]], targets, classes

    def shard(self, part: int, parts: int) -> TextBatches:
        """Parts of the same micro-batches, for a process of several that share them."""
        images = self.images.shard(part, parts)
        return TextBatches(images, self.tokens, every_class=self.every_class, part=(part, parts))
