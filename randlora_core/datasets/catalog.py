"""The paper's 22 image data sets (table 7): sizes, epochs, and the folder names under which people keep them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperDataset:
    """One row of the paper's table 7 and what else belongs to the data set.

    Attributes:
        key: Our name, the usual name of the folder.
        paper_name: The name in the paper's tables.
        num_classes: Number of classes.
        num_train: Training images, without validation.
        num_validation: Validation images.
        num_test: Test images.
        epochs: Epochs of training on 50 % or 100 % of the data; few-shot training takes 10.
        aliases: Other folder names. `<name>_<anything>` counts as a variant of the same data set.
        official_code_epochs: Epochs in the official code where they differ from the paper's.
        in_vision_suite: Whether the vision-only experiments use it too.
        allow_flip: Whether a mirrored image still shows its class.
        prompts: Key in clip_prompts.json, or None for the default template.
        official_order: Whether the class names of clip_prompts.json stand in the order of the official class numbers.
    """

    key: str
    paper_name: str
    num_classes: int
    num_train: int
    num_validation: int
    num_test: int
    epochs: int
    aliases: tuple[str, ...] = ()
    official_code_epochs: int | None = None
    in_vision_suite: bool = True
    allow_flip: bool = True
    prompts: str | None = None
    official_order: bool = False

    def has_sizes(self, num_classes: int, num_train_and_validation: int, num_test: int) -> bool:
        """Says whether these sizes are the paper's, whatever the cut between training and validation."""
        own = (self.num_classes, self.num_train + self.num_validation, self.num_test)
        return own == (num_classes, num_train_and_validation, num_test)


CATALOG: tuple[PaperDataset, ...] = (
    PaperDataset(
        "stanford_cars", "Cars", 196, 7330, 814, 8041, 35, ("cars",), prompts="stanford_cars", official_order=True
    ),
    PaperDataset("dtd", "DTD", 47, 3384, 376, 1880, 76, prompts="dtd"),
    PaperDataset("eurosat", "EuroSAT", 10, 21600, 2700, 2700, 12, official_code_epochs=13, prompts="eurosat"),
    PaperDataset("gtsrb", "GTSRB", 43, 23976, 2664, 12630, 11, allow_flip=False, prompts="gtsrb", official_order=True),
    PaperDataset("mnist", "MNIST", 10, 55000, 5000, 10000, 5, allow_flip=False, prompts="mnist", official_order=True),
    PaperDataset("resisc45", "RESISC45", 45, 17010, 1890, 6300, 15, prompts="resisc45"),
    PaperDataset("sun397", "SUN397", 397, 17865, 1985, 19850, 14, prompts="sun397"),
    PaperDataset("svhn", "SVHN", 10, 68257, 5000, 26032, 4, allow_flip=False, prompts="mnist", official_order=True),
    PaperDataset("cifar10", "CIFAR10", 10, 45000, 5000, 10000, 5, prompts="cifar10", official_order=True),
    PaperDataset("cifar100", "CIFAR100", 100, 45000, 5000, 10000, 6, prompts="cifar100", official_order=True),
    PaperDataset(
        "imagenet", "ImageNet", 1000, 1276167, 5000, 50000, 10, ("imagenet1k", "imagenet-1k"), in_vision_suite=False
    ),
    PaperDataset("stl10", "STL10", 10, 4500, 500, 8000, 4, prompts="stl10"),
    PaperDataset("food101", "Food101", 101, 70750, 5000, 25250, 15, prompts="food101"),
    PaperDataset("caltech101", "Caltech101", 101, 6941, 694, 1736, 10, prompts="caltech101"),
    PaperDataset("caltech256", "Caltech256", 257, 22037, 2448, 6122, 8, prompts="caltech101"),
    PaperDataset(
        "fgvc_aircraft",
        "FGVCAircraft",
        100,
        3334,
        3333,
        3333,
        60,
        ("aircraft", "fgvcaircraft"),
        prompts="fgvc_aircraft",
    ),
    PaperDataset(
        "flowers102", "Flowers102", 102, 1020, 1020, 6149, 40, ("flowers",), prompts="flowers102", official_order=True
    ),
    PaperDataset(
        "oxford_iiit_pet",
        "OxfordIIITPet",
        37,
        3312,
        368,
        3669,
        5,
        ("oxford_pets", "oxfordiiitpet", "pets"),
        prompts="oxford_iiit_pet",
    ),
    PaperDataset("cub200", "CUB200", 200, 5395, 599, 5794, 20, ("cub",), prompts="cub200"),
    PaperDataset("pascal_voc", "PascalVOC", 20, 7844, 7818, 14976, 10, ("voc2007", "pascalvoc"), prompts="pascal_voc"),
    PaperDataset("country211", "Country211", 211, 31650, 10550, 21100, 15, prompts="country211", official_order=True),
    PaperDataset("ucf101", "UCF101", 101, 7639, 1898, 3783, 20, prompts="ucf101"),
)
"""Table 7 of the paper, in its order."""


def find_paper_dataset(name: str) -> PaperDataset | None:
    """Finds the paper's data set that a folder holds, whole or in part.

    Args:
        name: A folder's name, for instance "gtsrb", "cars" or "flowers102_part".

    Returns:
        The row of `CATALOG`, or None where the paper does not use such a data set.
    """
    lowered = name.lower()
    for entry in CATALOG:
        for alias in (entry.key, *entry.aliases):
            if lowered == alias or lowered.startswith(f"{alias}_"):
                return entry
    return None
