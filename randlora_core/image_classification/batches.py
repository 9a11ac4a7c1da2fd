"""Training images as micro-batches that are a function of their number alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from randlora_core.datasets.images import ImageSplit
from randlora_core.datasets.streams import Stream
from randlora_core.datasets.transforms import EvaluationSplit, eval_transform, train_transform
from randlora_core.experiment.seeding import generator
from randlora_core.models import Backbone

AugmentedTransform = Callable[[Image.Image, Stream], Tensor]


class DataOrder:
    """An endless order of images: one permutation per epoch, laid end to end, so that every batch is full.

    Args:
        num_images: Images in an epoch.
        seed: The run's seed; its stream data_order decides the permutations.
    """

    def __init__(self, num_images: int, seed: int):
        self.num_images, self.seed = num_images, seed
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def take(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Pairs (epoch, image) at positions start .. start + count - 1."""
        for position in range(start, start + count):
            epoch, offset = divmod(position, self.num_images)
            yield epoch, self._permutation(epoch)[offset]

    def _draw(self, epoch: int) -> list[int]:
        return torch.randperm(self.num_images, generator=generator(self.seed, "data_order", epoch)).tolist()


class ImageBatches(Dataset):
    """Micro-batch i as (images float32 (batch, 3, size, size), labels int64 (batch,)).

    Args:
        split: The training images.
        transform: From an image and a stream of random numbers to a tensor.
        batch_size: Images per micro-batch.
        num_batches: How many there are.
        seed: The run's seed; order and augmentation have streams of their own.
    """

    def __init__(
        self, split: ImageSplit, transform: AugmentedTransform, *, batch_size: int, num_batches: int, seed: int
    ):
        self.split, self.transform, self.seed = split, transform, seed
        self.batch_size, self.num_batches = batch_size, num_batches
        self.order = DataOrder(len(split), seed)
        self.labels = split.labels

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.num_batches:
            raise IndexError(index)
        chosen = list(self.order.take(index * self.batch_size, self.batch_size))
        images = [self._image(epoch, image) for epoch, image in chosen]
        return torch.stack(images), self.labels[[image for _, image in chosen]]

    def _image(self, epoch: int, index: int) -> Tensor:
        return self.transform(self.split.image(index), Stream("augmentation", self.seed, epoch, index))


def training_transform(backbone: Backbone, *, crop: float, flip: bool) -> AugmentedTransform:
    """The augmentation at a backbone's size.

    Args:
        backbone: Says size, normalisation and interpolation.
        crop: Smallest area of the random crops, as a share of the image; 1 for the whole centred square.
        flip: Mirror half of the images.
    """
    sizes = (backbone.image_size, backbone.mean, backbone.std)
    if crop < 1:
        scale = (crop, 1.0)
        return train_transform(*sizes, interpolation=backbone.interpolation, crop_scale=scale, flip=flip)
    return _WholeImage(eval_transform(*sizes, interpolation=backbone.interpolation), flip)


class _WholeImage:
    """The evaluation transform, mirrored with probability one half where asked for."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], flip: bool):
        self.transform, self.flip = transform, flip

    def __call__(self, image: Image.Image, stream: Stream) -> Tensor:
        tensor = self.transform(image)
        return tensor.flip(-1) if self.flip and stream.integer(2) else tensor


def evaluation_loader(
    split: ImageSplit, backbone: Backbone, *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """A split in its order, as (images, labels), the centred square of each image at the backbone's size."""
    transform = eval_transform(backbone.image_size, backbone.mean, backbone.std, interpolation=backbone.interpolation)
    images = EvaluationSplit(split, transform)
    return DataLoader(images, batch_size=batch_size, num_workers=workers, pin_memory=pin_memory)
