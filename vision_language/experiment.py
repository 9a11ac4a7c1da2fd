"""Fine-tuning of both CLIP towers by the contrastive loss (sections 5.3 and 6.3 of the paper)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from randlora_core.experiment.backbones import adapted_shapes, build_run_backbone, identify_run_weights
from randlora_core.experiment.interface import Experiment, Work
from randlora_core.image_classification.config import ImageRunConfig, ImageTrainingConfig
from randlora_core.image_classification.data import IMAGE_AXES, chosen_templates, identify_images, load_images
from randlora_core.image_classification.prediction import Classifier
from randlora_core.image_classification.task import ImageTask
from randlora_core.image_classification.texts import class_embeddings, class_tokens, similarities
from randlora_core.image_classification.work import count_image_work
from randlora_core.models import Backbone
from vision_language.objective import ContrastiveObjective, TextBatches


class VisionLanguageTrainingConfig(ImageTrainingConfig):
    """How both towers are trained.

    Attributes:
        objective: What an image is contrasted with: the distinct classes of its micro-batch, or all classes.
    """

    objective: Literal["in_batch", "class_wise"]


class VisionLanguageConfig(ImageRunConfig):
    """One run on both CLIP towers."""

    training: VisionLanguageTrainingConfig


class VisionLanguageTask(ImageTask):
    """CLIP's two towers, the classes as texts.

    Args:
        config: The run.
        backbone: A CLIP model.
    """

    frozen: ClassVar[tuple[str, ...]] = ("logit_scale",)

    def __init__(self, config: VisionLanguageConfig, backbone: Backbone):
        if backbone.kind != "clip":
            raise ValueError(f"backbone {backbone.name!r} has no text tower; accepted: CLIP models")
        super().__init__(config, backbone, load_images(config))

    def make_module(self) -> nn.Module:
        """Both towers under the contrastive loss, or the linear probe."""
        if self.is_probe:
            return super().make_module()
        self.tokens = class_tokens(self.backbone, self.images.class_names, chosen_templates(self.images, self.config))
        return ContrastiveObjective(self.model)

    def encode(self, images: Tensor) -> Tensor:
        """Features of the image tower."""
        return self.model.encode_image(images)

    def batches(self, count: int, size: int) -> Dataset:
        """Micro-batches of images with the texts that they are contrasted with."""
        every_class = self.config.training.objective == "class_wise"
        return TextBatches(self.image_batches(count, size), self.tokens[0], every_class=every_class)

    def classifier(self, device: torch.device, precision: str) -> Classifier:
        """Images against the texts of all classes, which are encoded once, averaged over all templates."""
        texts = class_embeddings(self.model, self.tokens, device, precision)
        return lambda images: similarities(self.encode(images), texts, self.model.logit_scale)


def build_task(config: VisionLanguageConfig) -> VisionLanguageTask:
    """The task of a run, its model not yet adapted."""
    return VisionLanguageTask(config, build_run_backbone(config))


def count_work(config: VisionLanguageConfig) -> Work | None:
    """What a run has to compute."""
    return count_image_work(config, trains_texts=True)


EXPERIMENT = Experiment(
    name="vision_language",
    config_class=VisionLanguageConfig,
    axes=IMAGE_AXES,
    identify_data=identify_images,
    identify_weights=identify_run_weights,
    build_task=build_task,
    adapted_shapes=adapted_shapes,
    count_work=count_work,
    unit="images",
    preload=("open_clip", "sklearn.datasets", "sklearn.linear_model", "vision_language.experiment"),
)
