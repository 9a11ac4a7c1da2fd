"""Image data shared by the experiments: catalog, readers, prompts, few-shot subsets, transforms."""

from randlora_core.extras import needs_extra

with needs_extra("experiments"):
    from .catalog import CATALOG, DatasetEntry, HubEntry, TorchvisionEntry, find_paper_dataset
    from .find import BUILT_IN, MissingDataError, available, fetch
    from .images import ImageData, ImageSource, ImageSplit
    from .load import fingerprint_data, load_data
    from .transforms import EvaluationSplit, TrainingSplit, eval_transform, training_transform

__all__ = [
    "BUILT_IN",
    "CATALOG",
    "DatasetEntry",
    "EvaluationSplit",
    "HubEntry",
    "ImageData",
    "ImageSource",
    "ImageSplit",
    "MissingDataError",
    "TorchvisionEntry",
    "TrainingSplit",
    "available",
    "eval_transform",
    "fetch",
    "find_paper_dataset",
    "fingerprint_data",
    "load_data",
    "training_transform",
]
