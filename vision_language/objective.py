"""What is minimised: the cross-entropy of images over the texts of classes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

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

    def forward(self, images: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """The sum of the images' cross-entropies, and their number.

        Args:
            images: (B, 3, S, S).
            tokens: Texts (C, context), or as short as `shorten` makes them.
            targets: Index of each image's text, (B,).
        """
        image_features, text_features = self.model.encode_image(images), encode_text(self.model, tokens)
        logits = similarities(image_features, text_features, self.model.logit_scale)
        return F.cross_entropy(logits, targets, reduction="sum"), len(targets)


class TextBatches(Dataset):
    """Micro-batches of images with the texts they are contrasted with: (images, tokens, targets).

    The distinct classes are found here, on the CPU, so that training never waits for the accelerator to count them.

    Args:
        images: Micro-batches of images and labels.
        tokens: One text per class, (classes, context).
        every_class: Give the texts of all classes instead of those of the micro-batch.
    """

    def __init__(self, images: ImageBatches, tokens: Tensor, *, every_class: bool):
        self.images, self.tokens, self.every_class = images, tokens, every_class

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = self.images[index]
        if self.every_class:
            return images, self.tokens, labels
        distinct, targets = labels.unique(return_inverse=True)
        return images, self.tokens[distinct], targets
