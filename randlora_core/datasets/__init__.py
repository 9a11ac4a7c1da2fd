"""Image data shared by the experiments: catalog, readers, prompts, few-shot subsets, transforms."""

from randlora_core.extras import needs_extra

with needs_extra("experiments"):
    from .catalog import CATALOG, PaperDataset, find_paper_dataset
    from .images import ImageData, ImageSource, ImageSplit
    from .load import BUILT_IN, MissingDataError, available, fingerprint_data, load_data
    from .transforms import EvaluationSplit, TrainingSplit, eval_transform, training_transform

__all__ = [
    "BUILT_IN",
    "CATALOG",
    "EvaluationSplit",
    "ImageData",
    "ImageSource",
    "ImageSplit",
    "MissingDataError",
    "PaperDataset",
    "TrainingSplit",
    "available",
    "eval_transform",
    "find_paper_dataset",
    "fingerprint_data",
    "load_data",
    "training_transform",
]
