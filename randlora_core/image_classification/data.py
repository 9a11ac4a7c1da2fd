"""The images of a run: identified when it is planned, loaded when it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from randlora_core.datasets.find import BUILT_IN, FOLDER_PREFIX
from randlora_core.datasets.images import ImageData
from randlora_core.datasets.load import MissingDataError, fingerprint_data, load_data
from randlora_core.experiment.interface import Axis, MissingInputError
from randlora_core.image_classification.config import ImageRunConfig


def _describe_shots(shots: int | None) -> str:
    return "" if shots is None else f"{shots} shot{'s' if shots > 1 else ''}"


def _describe_fraction(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:g} %"


IMAGE_AXES = (
    Axis("dataset"),
    Axis("shots", _describe_shots),
    Axis("fraction", _describe_fraction),
    Axis("backbone"),
)
"""The settings by which runs on images differ."""


def identify_images(config: ImageRunConfig) -> str:
    """The fingerprint of a run's data set.

    Raises:
        ValueError: There is no data set of this name.
        MissingInputError: Its files are not here.
    """
    try:
        return fingerprint_data(config.dataset, config.paths.data, download=config.download)
    except MissingDataError as error:
        raise MissingInputError(str(error)) from error


def load_images(config: ImageRunConfig) -> ImageData:
    """A run's images, its training images chosen by the run's seed."""
    own = Path(config.paths.data or "") / config.dataset
    if config.dataset in BUILT_IN and config.paths.data and own.is_dir():
        print(f"{config.dataset} is the built-in data set; the folder {own} is dataset={FOLDER_PREFIX}{config.dataset}")
    images = load_data(
        config.dataset,
        root=config.paths.data,
        shots=config.shots,
        fraction=config.fraction,
        seed=config.seed,
        leave_out_unreadable=config.leave_out_unreadable,
        download=config.download,
    )
    for name in images.left_out:
        print(f"left out: {name}", flush=True)
    return images


def chosen_templates(images: ImageData, config: ImageRunConfig) -> tuple[str, ...]:
    """The prompt templates that `prompts` asks for; training takes the first one."""
    return images.templates[:1] if config.prompts == "single" else images.templates


def data_section(data: ImageData, shots: int | None) -> dict[str, Any]:
    """The record's section on the images, with what a reader of a table must know about them."""
    remarks = []
    if data.is_subset:
        remarks.append(
            f"{data.name} is a subset of the published data set; its numbers do not compare to published ones."
        )
    if counts := data.short_classes:
        fewest = f"(fewest {min(counts.values())})"
        remarks.append(f"{data.name}: {len(counts)} classes have fewer than {shots} training images {fewest}.")
    if data.left_out:
        remarks.append(f"{data.name}: {len(data.left_out)} images that cannot be read were left out.")
    return {
        "name": data.name,
        "sizes": dict(data.sizes),
        "chosen": data.chosen,
        "left_out": list(data.left_out),
        "is_subset": data.is_subset,
        "paper_name": data.paper_name,
        "remarks": remarks,
    }
