"""What a run on images has to compute, counted from the paper's sizes of data sets and the backbone's shapes."""

from __future__ import annotations

from randlora_core.datasets.catalog import DatasetEntry
from randlora_core.datasets.find import catalog_entry
from randlora_core.experiment.interface import Work
from randlora_core.image_classification.config import ImageRunConfig
from randlora_core.models.work import backbone_cost


def count_image_work(config: ImageRunConfig, *, trains_texts: bool) -> Work | None:
    """The work of a run; None for a data set of unknown size and a backbone of unknown shape.

    Args:
        config: The run. A part of a data set counts as the whole.
        trains_texts: Whether class texts are encoded in every step, as where both towers of CLIP are trained.
    """
    entry = catalog_entry(config.dataset)
    if entry is None:
        return None
    try:
        cost = backbone_cost(config.backbone.name, config.backbone.options)
    except (OSError, ValueError):
        return None
    templates = 1 if config.prompts == "single" else max(1, len(entry.templates))
    texts = entry.num_classes * templates * cost.text.flops
    scored = entry.num_validation + entry.num_test
    if not config.is_fitted:
        solved = _train_images(config, entry) if config.is_trained else 0
        return Work(0, (scored + solved) * cost.example.flops + texts, cost.num_bytes, 0, solved)
    training, micro_batch = config.training, config.training.batch_size // config.training.accumulate
    steps = training.num_steps(_train_images(config, entry))
    in_step = _texts_in_micro_batch(config, entry.num_classes, micro_batch) if trains_texts else 0
    return Work(
        train_flops=steps
        * (training.batch_size * cost.example.flops + training.accumulate * in_step * cost.text.flops),
        evaluate_flops=scored * cost.example.flops + texts,
        model_bytes=cost.num_bytes if trains_texts else cost.vision_bytes,
        saved_bytes=micro_batch * cost.example.saved_bytes + in_step * cost.text.saved_bytes,
        num_examples=steps * training.batch_size,
    )


def _train_images(config: ImageRunConfig, entry: DatasetEntry) -> int:
    if config.shots is not None:
        return min(config.shots * entry.num_classes, entry.num_train)
    return round(entry.num_train * (config.fraction or 1.0))


def _texts_in_micro_batch(config: ImageRunConfig, num_classes: int, micro_batch: int) -> float:
    """The texts that images are contrasted with: all, or as many classes as so many random images have on average."""
    if getattr(config.training, "objective", "class_wise") == "class_wise":
        return num_classes
    return num_classes * (1 - (1 - 1 / num_classes) ** micro_batch)
