"""Fine-tuning of image models: DINOv2, or the vision tower of CLIP (section 5.2 of the paper)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from randlora_core.experiment.backbones import adapted_shapes, build_run_backbone, identify_run_weights
from randlora_core.experiment.interface import Experiment, Work
from randlora_core.experiment.loop.distributed import evaluating
from randlora_core.experiment.loop.hardware import pick_device
from randlora_core.experiment.sections import PositiveNumber
from randlora_core.image_classification.config import ImageRunConfig, ImageTrainingConfig
from randlora_core.image_classification.data import IMAGE_AXES, chosen_templates, identify_images, load_images
from randlora_core.image_classification.task import ImageTask
from randlora_core.image_classification.texts import class_embeddings, class_tokens
from randlora_core.image_classification.work import count_image_work
from randlora_core.models import Backbone
from randlora_core.models.dinov2 import SOURCES as WITHOUT_TEXTS
from vision.classifier import ClassificationObjective, TextHead, TrainedHead


class VisionTrainingConfig(ImageTrainingConfig):
    """How an image model is trained.

    Attributes:
        head_learning_rate: Peak of the schedule for a trained head; null for that of the run. Without effect on a
            model of CLIP, whose classes are texts.
    """

    head_learning_rate: PositiveNumber | None


class VisionConfig(ImageRunConfig):
    """One run on an image model."""

    training: VisionTrainingConfig

    @model_validator(mode="after")
    def _has_texts_for_zero_shot(self) -> VisionConfig:
        if self.adapter.method == "zero_shot" and self.backbone.name in WITHOUT_TEXTS:
            raise ValueError(
                f"adapter.method='zero_shot' needs class texts, which backbone {self.backbone.name!r} does not encode; "
                "accepted: a model of CLIP, or another method, such as linear_probe"
            )
        return self

    @property
    def trains_head(self) -> bool:
        """Whether a head is trained beside what the method trains."""
        return self.is_fitted and self.backbone.name in WITHOUT_TEXTS

    def identity(self, learning_rate: float | None) -> dict[str, Any]:
        """As for every run on images; the head's rate counts with a trained head, prompts with class texts."""
        values = super().identity(learning_rate)
        if self.backbone.name in WITHOUT_TEXTS:
            values.pop("prompts", None)
        if not self.trains_head:
            values["training"].pop("head_learning_rate", None)
        return values


class VisionTask(ImageTask):
    """An image model and a head on its features. Of CLIP the vision tower alone is kept, adapted and counted.

    Args:
        config: The run.
        backbone: An image model, or CLIP.
    """

    def __init__(self, config: VisionConfig, backbone: Backbone):
        if backbone.kind not in ("vision", "clip"):
            raise ValueError(f"backbone {backbone.name!r} takes no images; accepted: models of DINOv2 and CLIP")
        super().__init__(config, backbone, load_images(config))

    def make_module(self) -> nn.Module:
        """The image model with a classifier of class texts or a trained head, or the linear probe."""
        head = None if self.is_probe else self._make_head()
        if self.backbone.kind == "clip":
            self.backbone = replace(self.backbone, model=self.model.visual, kind="vision", tokenize=None)
            self.model = self.backbone.model
        return super().make_module() if head is None else ClassificationObjective(self.model, head)

    def encode(self, images: Tensor) -> Tensor:
        """Features of the image model."""
        return self.model(images)

    def batches(self, count: int, size: int) -> Dataset:
        """Micro-batches of images with their labels."""
        return self.image_batches(count, size)

    def _make_head(self) -> nn.Module:
        """The texts of the classes, averaged over all templates; for a model without texts a head to be trained."""
        names = self.images.class_names
        if self.backbone.kind == "clip":
            device = pick_device(self.config.device)
            tokens = class_tokens(self.backbone, names, chosen_templates(self.images, self.config))
            with evaluating(self.model, device):
                texts = class_embeddings(self.model, tokens, device, self.config.training.precision)
            self.model.cpu()  # where adapters are drawn, so that they are the same on every machine
            return TextHead(texts.cpu(), self.model.logit_scale.detach())
        self.outputs = names
        if (rate := self.config.training.head_learning_rate) is not None:
            self.part_learning_rates = {"head": rate}
        return TrainedHead(self.backbone.embed_dim, len(names), self.config.seed)


def build_task(config: VisionConfig) -> VisionTask:
    """The task of a run, its model not yet adapted."""
    return VisionTask(config, build_run_backbone(config))


def count_work(config: VisionConfig) -> Work | None:
    """What a run has to compute; its class texts are encoded once."""
    return count_image_work(config, trains_texts=False)


EXPERIMENT = Experiment(
    name="vision",
    config_class=VisionConfig,
    axes=IMAGE_AXES,
    identify_data=identify_images,
    identify_weights=identify_run_weights,
    build_task=build_task,
    adapted_shapes=partial(adapted_shapes, tower="visual"),
    count_work=count_work,
    unit="images",
    preload=("open_clip", "timm", "sklearn.datasets", "sklearn.linear_model", "vision.experiment"),
)
