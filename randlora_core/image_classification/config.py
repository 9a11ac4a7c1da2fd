"""The configuration of a run on images."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from randlora_core.datasets.find import catalog_entry
from randlora_core.experiment.config import RunConfig, TrainingConfig
from randlora_core.experiment.sections import Positive, free, neutral

FEW_SHOT_EPOCHS = 10
"""Epochs of the paper's runs with 1, 2, 4 and 16 images per class (camera-ready C.1)."""


class ImageTrainingConfig(TrainingConfig):
    """How a model is trained on images.

    Attributes:
        epochs: As for every run; "paper" stands for the paper's number for the data set (table 7), 10 with `shots`.
        crop: Smallest area of the random crops, as a share of the image; 1 for no cropping.
        flip: Mirror half of the images; null does so where the data set allows it.
    """

    epochs: Positive | Literal["paper"] | None
    crop: Annotated[float, Field(gt=0, le=1)]
    flip: bool | None


class ImageRunConfig(RunConfig):
    """One run on an image data set.

    Attributes:
        dataset: A built-in data set, or the name of a folder in `paths.data`.
        shots: Training images per class; null for all.
        fraction: Share of the training images; null for all.
        prompts: Texts of a class: single, the data set's first template, or ensemble, for a classifier the average over
            all its templates (an image is trained against the first one in either case). Without effect on the linear
            probe and on models without class texts.
        leave_out_unreadable: Do without the images that cannot be decoded instead of stopping before training; the
            record lists them.
        download: Get one of the paper's data sets that is not here from the hub, else through torchvision.
        training: Optimizer, schedule, length and augmentation.
    """

    SOLVED: ClassVar[tuple[str, ...]] = ("linear_probe",)
    TRAINING_DATA: ClassVar[tuple[str, ...]] = ("shots", "fraction")

    dataset: str
    shots: Positive | None
    fraction: Annotated[float, Field(gt=0, le=1)] | None
    prompts: Literal["single", "ensemble"] = neutral("ensemble")
    leave_out_unreadable: bool = neutral(False)
    download: bool = free(default=False)
    training: ImageTrainingConfig

    @model_validator(mode="after")
    def _chooses_one_subset(self) -> ImageRunConfig:
        if self.shots is not None and self.fraction is not None:
            raise ValueError(f"shots={self.shots} and fraction={self.fraction}; accepted: one of them, the other null")
        return self

    @model_validator(mode="after")
    def _knows_the_papers_epochs(self) -> ImageRunConfig:
        """Replaces "paper" by the number, which is then what identifies and records the run."""
        if self.training.epochs == "paper":
            entry = catalog_entry(self.dataset)
            if entry is None or entry.epochs is None:
                accepted = "a number, or one of the paper's data sets"
                raise ValueError(f"training.epochs=paper with dataset={self.dataset}; accepted: {accepted}")
            epochs = entry.epochs if self.shots is None else FEW_SHOT_EPOCHS
            training = self.training.model_copy(update={"epochs": epochs})
            object.__setattr__(self, "training", training)
        return self

    def identity(self, learning_rate: float | None) -> dict[str, Any]:
        """As for every run; a converged probe depends on the seed by the choice of its training images alone."""
        values = super().identity(learning_rate)
        if self.adapter.method in self.SOLVED:
            values.pop("prompts", None)
        if values.get("fraction") == 1:
            values["fraction"] = None  # all images are all images
        whole = self.shots is None and self.fraction in (None, 1)
        if self.adapter.method in self.SOLVED and whole and not self.has_random_weights:
            values.pop("seed")
        return values
