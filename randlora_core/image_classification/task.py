"""What a task on images is, whatever its model and its loss."""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from randlora_core.datasets.images import ImageData
from randlora_core.experiment.interface import Score, Split, Task
from randlora_core.experiment.loop.hardware import pick_workers
from randlora_core.image_classification.batches import ImageBatches, evaluation_loader, training_images
from randlora_core.image_classification.config import ImageRunConfig
from randlora_core.image_classification.data import data_section
from randlora_core.image_classification.prediction import Classifier, compute_features, score_images
from randlora_core.image_classification.probe import LinearHead, Probe, fit_probe
from randlora_core.models import Backbone


class ImageTask(Task):
    """A backbone on an image data set; the linear probe is the same for all of them.

    Args:
        config: The run.
        backbone: The pre-trained model.
        data: The images.
    """

    def __init__(self, config: ImageRunConfig, backbone: Backbone, data: ImageData):
        self.config, self.backbone, self.images = config, backbone, data
        self.model = backbone.model
        self.default_targets = backbone.default_targets
        self.num_examples = len(data.train)
        self.data = data_section(data, config.shots)
        self.test_sets = (data.name,)
        self._loaders: dict[str, DataLoader] = {}
        self.module = self.make_module()

    def make_module(self) -> nn.Module:
        """The module that is trained; here that of the linear probe, the frozen model with a head for the classes."""
        self.outputs = self.images.class_names
        return Probe(self.model, LinearHead(self.backbone.embed_dim, len(self.outputs)))

    @property
    def is_probe(self) -> bool:
        """Whether the method is the linear probe."""
        return self.config.adapter.method in self.config.SOLVED

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, S, S)."""

    def classifier(self, device: torch.device, precision: str) -> Classifier:
        """The classifier as it is now, for a method that is no probe; here the head of `module` on the features."""
        return self._classify_by_head

    def image_batches(self, count: int, size: int) -> ImageBatches:
        """Micro-batches of training images with their labels."""
        training = self.config.training
        flip = self.images.allow_flip if training.flip is None else training.flip
        images = training_images(self.images.train, self.backbone, crop=training.crop, flip=flip)
        return ImageBatches(images, batch_size=size, num_batches=count, seed=self.config.seed)

    def evaluate(self, split: Split, device: torch.device, precision: str) -> dict[str, Score]:
        """The accuracy on the validation or the test split."""
        images = self._loader(split, device)
        classify = self._classify_by_head if self.is_probe else self.classifier(device, precision)
        return {self.images.name: score_images(classify, images, device, precision)}

    def solve(self, device: torch.device, precision: str) -> dict[str, Any]:
        """Fits the linear probe on features that are computed once."""
        train, validation = (
            compute_features(self.encode, self._loader(split, device), device, precision)
            for split in ("train", "validation")
        )
        fitted = fit_probe(self.module.head, train, validation)
        grid = [{"strength": strength, "validation": score} for strength, score in fitted.grid]
        return {"strength": fitted.strength, "converged": fitted.converged, "grid": grid}

    def _classify_by_head(self, images: Tensor) -> Tensor:
        return self.module.head(self.encode(images))

    def _loader(self, split: Literal["train", "validation", "test"], device: torch.device) -> DataLoader:
        """A split's images in order; built once, since a run may validate often."""
        if split not in self._loaders:
            self._loaders[split] = evaluation_loader(
                getattr(self.images, split),
                self.backbone,
                batch_size=self.config.evaluate.batch_size,
                workers=pick_workers(self.config.workers, device),
                pin_memory=device.type == "cuda",
            )
        return self._loaders[split]
