"""Image data shared by the experiments: catalog, readers, prompts, few-shot subsets, transforms."""

from .catalog import CATALOG, PaperDataset, find_paper_dataset
from .images import ImageData, ImageSource, ImageSplit
from .load import BUILT_IN, available, load_data
from .transforms import EvaluationSplit, eval_transform, train_transform

__all__ = [
    "BUILT_IN",
    "CATALOG",
    "EvaluationSplit",
    "ImageData",
    "ImageSource",
    "ImageSplit",
    "PaperDataset",
    "available",
    "eval_transform",
    "find_paper_dataset",
    "load_data",
    "train_transform",
]
