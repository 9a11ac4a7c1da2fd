"""The data sets by name: the paper's 22 (its table 7) and the two that need no files, and where to get them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .characters import Characters
from .digits import Digits
from .prompts import Prompts, known_prompts
from .stored import EmbeddedData


@dataclass(frozen=True, eq=False)
class HubEntry:
    """A repository of the Hugging Face hub that `datasets` can read without running code from it.

    Attributes:
        repository: Its id.
        splits: Our split names, and for each the hub's in the syntax of `datasets.load_dataset` ("train+test").
        config: Name of the configuration, or None for the only one.
        image: The column of images.
        label: The column of classes.
        is_verified: Whether someone has loaded it with this code and seen the paper's sizes.
    """

    repository: str
    splits: Mapping[str, str]
    config: str | None = None
    image: str = "image"
    label: str = "label"
    is_verified: bool = False

    @property
    def address(self) -> str:
        """Where people read about it."""
        return f"https://huggingface.co/datasets/{self.repository}"


@dataclass(frozen=True, eq=False)
class TorchvisionEntry:
    """A class of `torchvision.datasets` that downloads the original files.

    Attributes:
        name: Name of the class.
        splits: Our split names, and for each the arguments of the class that select it.
    """

    name: str
    splits: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class DatasetEntry:
    """What is known of a data set before its files are there.

    Attributes:
        key: Our name, the usual name of the folder.
        paper_name: The name in the paper's tables, or None where the paper does not use it.
        num_classes: Number of classes.
        num_train: Training images, without validation (but see `train_includes_validation`).
        num_validation: Validation images.
        num_test: Test images.
        epochs: Epochs of training on 50 % or 100 % of the data (few-shot training takes 10), None where unpublished.
        aliases: Other folder names. `<name>_<anything>` counts as a variant of the same data set.
        official_code_epochs: Epochs in the official code where they differ from the paper's.
        in_vision_suite: Whether the vision-only experiments use it too.
        allow_flip: Whether a mirrored image still shows its class.
        borrowed_prompts: Whose templates in clip_prompts.json it takes where CLIP published none for it.
        hub: Where the hub has it, or None.
        torchvision: How torchvision gets it, or None.
        is_test_cut: Whether the source has no test split, so that a fixed random part of all images becomes one.
        has_equal_cuts: Whether validation and test images are as many of every class, whatever its size.
        train_includes_validation: Whether table 7 counts the validation images among the training images, too.
        embedded: The reader of a data set that needs no files, or None.
    """

    key: str
    paper_name: str | None
    num_classes: int
    num_train: int
    num_validation: int
    num_test: int
    epochs: int | None = None
    aliases: tuple[str, ...] = ()
    official_code_epochs: int | None = None
    in_vision_suite: bool = True
    allow_flip: bool = True
    borrowed_prompts: str | None = None
    hub: HubEntry | None = None
    torchvision: TorchvisionEntry | None = None
    is_test_cut: bool = False
    has_equal_cuts: bool = False
    train_includes_validation: bool = False
    embedded: type[EmbeddedData] | None = None

    @property
    def folder_names(self) -> tuple[str, ...]:
        """The names under which people keep it."""
        return (self.key, *self.aliases)

    @property
    def prompts(self) -> Prompts:
        """Class names, templates and the labels that its sources use."""
        if self.embedded is not None:
            return Prompts(self.embedded.templates, self.embedded.names)
        return known_prompts(self.key, self.num_classes, self.borrowed_prompts or self.key)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in official order, or None where they are the source's own labels."""
        return self.prompts.names or None

    @property
    def templates(self) -> tuple[str, ...]:
        """CLIP's prompt templates with one `{}` for the class name."""
        return self.prompts.templates

    @property
    def num_train_and_validation(self) -> int:
        """Images of which training and validation are made."""
        return self.num_train + (0 if self.train_includes_validation else self.num_validation)

    def has_sizes(self, num_classes: int, num_train: int, num_validation: int, num_test: int) -> bool:
        """Says whether these sizes are the paper's."""
        own_train = self.num_train_and_validation - self.num_validation
        own = (self.num_classes, own_train, self.num_validation, self.num_test)
        return own == (num_classes, num_train, num_validation, num_test)


_HUB = {"train": "train", "test": "test"}
_HUB_3 = {"train": "train", "validation": "validation", "test": "test"}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
_SPLIT_3 = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_VOC = {split: {"year": "2007", "image_set": name} for split, name in (("train", "train"), ("validation", "val"))}

_PAPER = (
    DatasetEntry(
        "stanford_cars",
        "Cars",
        *(196, 7330, 814, 8041, 35),
        aliases=("cars",),
        hub=HubEntry("tanganke/stanford_cars", _HUB),
    ),
    DatasetEntry(
        "dtd",
        "DTD",
        *(47, 3384, 376, 1880, 76),
        hub=HubEntry("tanganke/dtd", _HUB),
        torchvision=TorchvisionEntry("DTD", _SPLIT_3),
    ),
    DatasetEntry(
        "eurosat",
        "EuroSAT",
        *(10, 21600, 2700, 2700, 12),
        official_code_epochs=13,
        hub=HubEntry("Honaker/eurosat_dataset", _HUB_3),
        torchvision=TorchvisionEntry("EuroSAT", {"train": {}}),
        is_test_cut=True,
        has_equal_cuts=True,
    ),
    DatasetEntry(
        "gtsrb",
        "GTSRB",
        *(43, 23976, 2664, 12630, 11),
        allow_flip=False,
        hub=HubEntry("tanganke/gtsrb", _HUB),
        torchvision=TorchvisionEntry("GTSRB", _SPLIT),
    ),
    DatasetEntry(
        "mnist",
        "MNIST",
        *(10, 55000, 5000, 10000, 5),
        allow_flip=False,
        hub=HubEntry("ylecun/mnist", _HUB),
        torchvision=TorchvisionEntry("MNIST", _TRAIN),
    ),
    DatasetEntry("resisc45", "RESISC45", *(45, 17010, 1890, 6300, 15), hub=HubEntry("timm/resisc45", _HUB_3)),
    DatasetEntry("sun397", "SUN397", *(397, 17865, 1985, 19850, 14), hub=HubEntry("tanganke/sun397", _HUB)),
    DatasetEntry(
        "svhn",
        "SVHN",
        *(10, 68257, 5000, 26032, 4),
        allow_flip=False,
        borrowed_prompts="mnist",
        hub=HubEntry("ufldl-stanford/svhn", _HUB, config="cropped_digits"),
        torchvision=TorchvisionEntry("SVHN", _SPLIT),
    ),
    DatasetEntry(
        "cifar10",
        "CIFAR10",
        *(10, 45000, 5000, 10000, 5),
        hub=HubEntry("uoft-cs/cifar10", _HUB, image="img"),
        torchvision=TorchvisionEntry("CIFAR10", _TRAIN),
    ),
    DatasetEntry(
        "cifar100",
        "CIFAR100",
        *(100, 45000, 5000, 10000, 6),
        hub=HubEntry("uoft-cs/cifar100", _HUB, image="img", label="fine_label"),
        torchvision=TorchvisionEntry("CIFAR100", _TRAIN),
    ),
    DatasetEntry(
        "imagenet",
        "ImageNet",
        *(1000, 1276167, 5000, 50000, 10),
        aliases=("imagenet1k", "imagenet-1k"),
        in_vision_suite=False,
        hub=HubEntry("ILSVRC/imagenet-1k", {"train": "train", "test": "validation"}),
    ),
    DatasetEntry(
        "stl10",
        "STL10",
        *(10, 4500, 500, 8000, 4),
        hub=HubEntry("tanganke/stl10", _HUB),
        torchvision=TorchvisionEntry("STL10", _SPLIT),
    ),
    DatasetEntry(
        "food101",
        "Food101",
        *(101, 70750, 5000, 25250, 15),
        hub=HubEntry("ethz/food101", {"train": "train", "test": "validation"}),
        torchvision=TorchvisionEntry("Food101", _SPLIT),
    ),
    DatasetEntry(
        "caltech101",
        "Caltech101",
        *(101, 6941, 694, 1736, 10),
        hub=HubEntry("flwrlabs/caltech101", {"train": "train"}),
        torchvision=TorchvisionEntry("Caltech101", {"train": {}}),
        is_test_cut=True,
        train_includes_validation=True,
    ),
    DatasetEntry(
        "caltech256",
        "Caltech256",
        *(257, 22037, 2448, 6122, 8),
        borrowed_prompts="caltech101",
        hub=HubEntry("ilee0022/Caltech-256", {"train": "train+validation+test"}),
        torchvision=TorchvisionEntry("Caltech256", {"train": {}}),
        is_test_cut=True,
    ),
    DatasetEntry(
        "fgvc_aircraft",
        "FGVCAircraft",
        *(100, 3334, 3333, 3333, 60),
        aliases=("aircraft", "fgvcaircraft"),
        torchvision=TorchvisionEntry("FGVCAircraft", _SPLIT_3),
    ),
    DatasetEntry(
        "flowers102",
        "Flowers102",
        *(102, 1020, 1020, 6149, 40),
        aliases=("flowers",),
        hub=HubEntry("dpdl-benchmark/oxford_flowers102", _HUB_3),
        torchvision=TorchvisionEntry("Flowers102", _SPLIT_3),
    ),
    DatasetEntry(
        "oxford_iiit_pet",
        "OxfordIIITPet",
        *(37, 3312, 368, 3669, 5),
        aliases=("oxford_pets", "oxfordiiitpet", "pets"),
        hub=HubEntry("timm/oxford-iiit-pet", _HUB),
        torchvision=TorchvisionEntry("OxfordIIITPet", {**_SPLIT, "train": {"split": "trainval"}}),
    ),
    DatasetEntry(
        "cub200",
        "CUB200",
        *(200, 5395, 599, 5794, 20),
        aliases=("cub",),
        hub=HubEntry("bentrevett/caltech-ucsd-birds-200-2011", _HUB),
    ),
    DatasetEntry(
        "pascal_voc",
        "PascalVOC",
        *(20, 7844, 7818, 14976, 10),
        aliases=("voc2007", "pascalvoc"),
        torchvision=TorchvisionEntry("VOCDetection", {**_VOC, "test": {"year": "2007", "image_set": "test"}}),
    ),
    DatasetEntry(
        "country211",
        "Country211",
        *(211, 31650, 10550, 21100, 15),
        torchvision=TorchvisionEntry("Country211", {**_SPLIT, "validation": {"split": "valid"}}),
    ),
    DatasetEntry("ucf101", "UCF101", *(101, 7639, 1898, 3783, 20)),
)

_EMBEDDED = (
    DatasetEntry("digits", None, *(10, 868, 210, 719), allow_flip=False, embedded=Digits),
    DatasetEntry("characters", None, *(62, 1984, 496, 496), allow_flip=False, embedded=Characters),
)

CATALOG: dict[str, DatasetEntry] = {entry.key: entry for entry in (*_PAPER, *_EMBEDDED)}
"""Key -> data set: table 7 of the paper, in its order, then the embedded ones."""


def find_paper_dataset(name: str, *, is_whole: bool = False) -> DatasetEntry | None:
    """Finds the paper's data set that a folder holds.

    Args:
        name: A folder's name, for instance "gtsrb", "cars" or "flowers102_part".
        is_whole: Accept only the data set's own names, none of a part or a variant ("flowers102_part").

    Returns:
        The row of `CATALOG`, or None where the paper does not use such a data set.
    """
    lowered = name.lower()
    for entry in CATALOG.values():
        for alias in entry.folder_names if entry.paper_name else ():
            if lowered == alias or (lowered.startswith(f"{alias}_") and not is_whole):
                return entry
    return None
