"""Measure the small CLIP on the six sets it has not seen, and write the model card's figures.

python -m tools.pretrain_mini_clip.probe --data PATH

For each set: a linear probe on the pre-trained vision tower, the same probe on the tower with random weights, ridge
regression on raw pixels, and zero-shot. Regularisation is chosen on a fifth of the training split; the fit
on all of it is scored on the test split once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from randlora_core.models.backbone import Backbone
from randlora_core.models.mini_clip import WEIGHTS_FILE, build_mini_clip
from tools.pretrain_mini_clip.captions import TEMPLATES
from tools.pretrain_mini_clip.card import CARD_FILE, FIGURES_FILE, file_sha256, render_tables, replace_tables
from tools.pretrain_mini_clip.data import HELD_OUT, read_class_names, read_split

MAX_TRAIN = 5_000
RAW_SIZE = 24
PROBE_STRENGTHS = tuple(10.0**exponent for exponent in (-3, -2, -1, 0))
RIDGE_STRENGTHS = tuple(10.0**exponent for exponent in (0, 1, 2, 3, 4))


@dataclass(frozen=True)
class LabelledImages:
    """A set's two splits at the model's size.

    Attributes:
        train: (N, S, S, 3) uint8.
        train_labels: (N,).
        test: (M, S, S, 3) uint8.
        test_labels: (M,).
        class_names: Cleaned names.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


Fit = Callable[[np.ndarray, np.ndarray, float], Callable[[np.ndarray], np.ndarray]]


def read_held_out(data: Path, dataset: str, size: int) -> LabelledImages:
    """Both splits of a set; of a training split beyond `MAX_TRAIN` images a fixed random part."""
    train, train_labels = read_split(data, dataset, "train", size)
    test, test_labels = read_split(data, dataset, "test", size)
    kept = np.sort(np.random.default_rng(0).permutation(len(train))[:MAX_TRAIN])
    return LabelledImages(train[kept], train_labels[kept], test, test_labels, tuple(read_class_names(data, dataset)))


@torch.no_grad()
def encode_images(backbone: Backbone, images: np.ndarray) -> np.ndarray:
    """Features (count, embed_dim) of uint8 images at the model's size."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    parts = []
    for part in np.array_split(images, max(1, len(images) // 256)):
        pixels = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255
        parts.append(backbone.model.encode_image((pixels - mean) / std).float())
    return torch.cat(parts).numpy()


@torch.no_grad()
def classify_zero_shot(backbone: Backbone, features: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """The class whose captions, averaged over all templates, lie nearest to each image."""
    weights: list[Tensor] = []
    for name in class_names:
        texts = backbone.model.encode_text(backbone.tokenize([template.format(name) for template in TEMPLATES]))
        weights.append(torch.nn.functional.normalize(texts, dim=-1).mean(0))
    classes = torch.nn.functional.normalize(torch.stack(weights), dim=-1)
    return (torch.from_numpy(features) @ classes.T).argmax(1).numpy()


def fit_logistic(features: np.ndarray, labels: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """Multinomial logistic regression on standardised features; `strength` is scikit-learn's C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(features, labels).predict


def fit_ridge(features: np.ndarray, labels: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression on the classes as -1 and 1; `strength` is the penalty."""
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=strength).fit(features, labels).predict


def measure_linear(
    fit: Fit, strengths: Sequence[float], train: np.ndarray, test: np.ndarray, data: LabelledImages
) -> dict:
    """Choose a strength on a fifth of the training split, refit on all of it, and score the test split once."""
    order = np.random.default_rng(1).permutation(len(train))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    labels = data.train_labels
    scores = [float((fit(train[kept], labels[kept], s)(train[held]) == labels[held]).mean()) for s in strengths]
    best = strengths[int(np.argmax(scores))]
    accuracy = float((fit(train, labels, best)(test) == data.test_labels).mean())
    return {"accuracy": accuracy, "strength": best, "validation_accuracy": max(scores)}


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Raw pixels (count, size * size * 3) in [0, 1] of smaller images."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.interpolate(pixels, size=(size, size), mode="area")
    return small.flatten(1).numpy()


def measure_dataset(pretrained: Backbone, random: Backbone, data: LabelledImages) -> dict:
    """All four figures of one set."""
    features = encode_images(pretrained, data.train), encode_images(pretrained, data.test)
    untrained = encode_images(random, data.train), encode_images(random, data.test)
    raw = shrink(data.train, RAW_SIZE), shrink(data.test, RAW_SIZE)
    predicted = classify_zero_shot(pretrained, features[1], data.class_names)
    return {
        "train_images": len(data.train),
        "test_images": len(data.test),
        "classes": len(data.class_names),
        "probe": measure_linear(fit_logistic, PROBE_STRENGTHS, *features, data),
        "probe_random_tower": measure_linear(fit_logistic, PROBE_STRENGTHS, *untrained, data),
        "ridge_on_pixels": measure_linear(fit_ridge, RIDGE_STRENGTHS, *raw, data),
        "zero_shot": float((predicted == data.test_labels).mean()),
        "chance": 1 / len(data.class_names),
    }


def read_training(folder: Path) -> dict:
    """Recipe, steps, minutes and last losses of a pre-training run from its log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    start = next(line for line in lines if "recipe" in line)
    losses = [line for line in lines if "contrast" in line]
    final = next(line for line in reversed(lines) if "tiny_imagenet_zero_shot" in line)
    mixture = start["recipe"]["mixture"]
    batch = mixture["natural"] + mixture["emoji"] + mixture["generated"]
    return {
        "recipe": start["recipe"],
        "classes_of_table": start["classes"],
        "steps": final["step"],
        "minutes": final["minutes"],
        "images": final["step"] * batch,
        "last_losses": {"contrast": losses[-1]["contrast"], "classes": losses[-1]["classes"]},
        "tiny_imagenet_test_zero_shot": final["tiny_imagenet_zero_shot"],
    }


def main() -> None:
    """Measure, write the figures and renew the card's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FILE)
    parser.add_argument("--training", type=Path, default=Path("results/pretrain"), help="folder of the training log")
    parser.add_argument("--dry-run", action="store_true", help="print the figures, write nothing")
    options = parser.parse_args()
    pretrained, random = build_mini_clip(weights=options.weights), build_mini_clip(pretrained=False)
    datasets = {}
    for name in HELD_OUT:
        datasets[name] = measure_dataset(pretrained, random, read_held_out(options.data, name, pretrained.image_size))
        print(json.dumps({name: datasets[name]}), flush=True)
    if options.dry_run:
        return
    figures = {
        "weights_file_sha256": file_sha256(options.weights),
        "parameters": sum(parameter.numel() for parameter in pretrained.model.parameters()),
        "training": read_training(options.training),
        "datasets": datasets,
    }
    FIGURES_FILE.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    card = CARD_FILE.read_text(encoding="utf-8")
    CARD_FILE.write_text(replace_tables(card, render_tables(figures)), encoding="utf-8")


if __name__ == "__main__":
    main()
