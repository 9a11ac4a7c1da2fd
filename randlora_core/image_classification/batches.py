"""Images as batches: for training micro-batches that are a function of their number alone, for evaluation in order."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from randlora_core.datasets.images import ImageSplit
from randlora_core.datasets.transforms import EvaluationSplit, TrainingSplit, training_transform
from randlora_core.experiment.loop.data_order import DataOrder
from randlora_core.models import Backbone
from randlora_core.streams import Stream


class ImageBatches(Dataset):
    """Micro-batch i as (images float32 (batch, 3, size, size), labels int64 (batch,)).

    Args:
        images: The training images and their augmentation.
        batch_size: Images per micro-batch.
        num_batches: How many there are.
        seed: The run's seed; order and augmentation have streams of their own.
    """

    def __init__(self, images: TrainingSplit, *, batch_size: int, num_batches: int, seed: int):
        self.images, self.seed = images, seed
        self.batch_size, self.num_batches = batch_size, num_batches
        self.order = DataOrder(len(images), seed)
        self.labels = images.split.labels
        self.part = slice(None)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.num_batches:
            raise IndexError(index)
        chosen = self._chosen(index)[self.part]
        images = [self._image(epoch, image) for epoch, image in chosen]
        return torch.stack(images), self.labels[[image for _, image in chosen]]

    def whole_labels(self, index: int) -> Tensor:
        """The labels of all of a micro-batch's images, of which a shard has only some: int64 (batch,)."""
        return self.labels[[image for _, image in self._chosen(index)]]

    def shard(self, part: int, parts: int) -> ImageBatches:
        """The same micro-batches with every `parts`-th image, from image `part` on.

        Raises:
            ValueError: A micro-batch has fewer images than there are parts.
        """
        if self.batch_size < parts:
            raise ValueError(
                f"micro-batches of {self.batch_size} images for {parts} processes; accepted: {parts} or more"
            )
        shard = copy.copy(self)
        shard.part = slice(part, None, parts)
        return shard

    def _chosen(self, index: int) -> list[tuple[int, int]]:
        return list(self.order.take(index * self.batch_size, self.batch_size))

    def _image(self, epoch: int, index: int) -> Tensor:
        return self.images.image(index, Stream("augmentation", self.seed, epoch, index))


def training_images(split: ImageSplit, backbone: Backbone, *, crop: float, flip: bool) -> TrainingSplit:
    """A split with the augmentation at a backbone's size.

    Args:
        split: The training images.
        backbone: Says preprocessing, size, normalisation and interpolation.
        crop: Smallest area of the random crops, as a share of the image; 1 for the model's own preprocessing.
        flip: Mirror half of the images.
    """
    sizes = (backbone.image_size, backbone.mean, backbone.std, backbone.interpolation)
    return TrainingSplit(split, training_transform(backbone.image_transform, *sizes, crop=crop, flip=flip))


def evaluation_loader(
    split: ImageSplit, backbone: Backbone, *, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader:
    """A split in its order, as (images, labels), by the model's own preprocessing."""
    images = EvaluationSplit(split, backbone.image_transform)
    return DataLoader(images, batch_size=batch_size, num_workers=workers, pin_memory=pin_memory)
