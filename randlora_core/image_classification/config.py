"""The configuration of a run on images."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from randlora_core.experiment.config import Positive, RunConfig, TrainingConfig


class ImageTrainingConfig(TrainingConfig):
    """How a model is trained on images.

    Attributes:
        crop: Smallest area of the random crops, as a share of the image; 1 for no cropping.
        flip: Mirror half of the images; null does so where the data set allows it.
    """

    crop: Annotated[float, Field(gt=0, le=1)]
    flip: bool | None


class ImageRunConfig(RunConfig):
    """One run on an image data set.

    Attributes:
        dataset: A built-in data set, or the name of a folder in `paths.data`.
        shots: Training images per class; null for all.
        fraction: Share of the training images; null for all.
        training: Optimizer, schedule, length and augmentation.
    """

    SOLVED: ClassVar[tuple[str, ...]] = ("linear_probe",)
    TRAINING_DATA: ClassVar[tuple[str, ...]] = ("shots", "fraction")

    dataset: str
    shots: Positive | None
    fraction: Annotated[float, Field(gt=0, le=1)] | None
    training: ImageTrainingConfig

    @model_validator(mode="after")
    def _chooses_one_subset(self) -> ImageRunConfig:
        if self.shots is not None and self.fraction is not None:
            raise ValueError(f"shots={self.shots} and fraction={self.fraction}; accepted: one of them, the other null")
        return self

    def identity(self, learning_rate: float | None) -> dict[str, Any]:
        """As for every run; a converged probe depends on the seed by the choice of its training images alone."""
        values = super().identity(learning_rate)
        if values.get("fraction") == 1:
            values["fraction"] = None  # all images are all images
        whole = self.shots is None and self.fraction in (None, 1)
        if self.adapter.method in self.SOLVED and whole and not self.has_random_weights:
            values.pop("seed")
        return values
