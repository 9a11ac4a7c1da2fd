"""Batches of pre-training: photographs, drawings and generated images with captions; a function of seed and step."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.pretrain_mini_clip import generate
from tools.pretrain_mini_clip.captions import DRAWING_TEMPLATES, TEMPLATES
from tools.pretrain_mini_clip.data import ImageTexts, read_emoji, read_natural


@dataclass(frozen=True)
class Mixture:
    """Number of images of each source in a batch.

    Attributes:
        natural: Photographs.
        emoji: Drawings.
        generated: Generated images.
        pool: Number of different generated images that are drawn.
    """

    natural: int = 188
    emoji: int = 16
    generated: int = 52
    pool: int = 30_000


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        images: (B, 64, 64, 3) uint8.
        natural: (B,) bool, true for photographs.
        captions: The distinct captions of the batch.
        caption_of: (B,) index into `captions`.
        label: (B,) index into the class table.
    """

    images: Tensor
    natural: Tensor
    captions: list[str]
    caption_of: Tensor
    label: Tensor


class Batches:
    """All images of pre-training in memory, and batch number `step` of them.

    Args:
        data: Folder with images/ and emoji/.
        mixture: Shares of the sources.
        seed: Seed of the order, the prompts and the generated images.
        workers: Processes that draw the generated images.
    """

    def __init__(self, data: Path, mixture: Mixture, seed: int, workers: int) -> None:
        self.mixture = mixture
        self.seed = seed
        self.natural, self.emoji = read_natural(data), read_emoji(data)
        self.generated, self.generated_captions = draw_pool(seed, mixture.pool, workers)
        sources = (self.natural, self.emoji, self.generated)
        self.class_names = tuple(dict.fromkeys(name for source in sources for name in source.vocabulary))
        index = {name: position for position, name in enumerate(self.class_names)}
        self._labels = [np.array([index[name] for name in source.vocabulary]) for source in sources]
        self._order = cache(partial(_epoch_order, seed))

    def __call__(self, step: int) -> Batch:
        """Batch number `step`, the same at every call."""
        random = np.random.default_rng([self.seed, 1, step])
        prompt, drawing_prompt = str(random.choice(TEMPLATES)), str(random.choice(DRAWING_TEMPLATES))
        sources = (self.natural, self.emoji, self.generated)
        sizes = (self.mixture.natural, self.mixture.emoji, self.mixture.generated)
        images, labels, texts = [], [], []
        for number, (source, size) in enumerate(zip(sources, sizes, strict=True)):
            rows = self._rows(number, len(source.names), step, size)
            images.append(source.images[rows])
            labels.append(self._labels[number][source.names[rows]])
            if source is self.generated:
                texts += [self.generated_captions[row] for row in rows]
            else:
                template = prompt if source is self.natural else drawing_prompt
                texts += [template.format(source.vocabulary[name]) for name in source.names[rows]]
        captions = list(dict.fromkeys(texts))
        position = {caption: index for index, caption in enumerate(captions)}
        return Batch(
            images=torch.from_numpy(np.concatenate(images)),
            natural=torch.arange(len(texts)) < self.mixture.natural,
            captions=captions,
            caption_of=torch.tensor([position[text] for text in texts]),
            label=torch.from_numpy(np.concatenate(labels)),
        )

    def _rows(self, source: int, count: int, step: int, size: int) -> np.ndarray:
        """The rows of a source that batch `step` takes: one shuffled pass after the other."""
        places = step * size + np.arange(size)
        return np.array([self._order(source, place // count, count)[place % count] for place in places.tolist()])


def draw_pool(seed: int, count: int, workers: int) -> tuple[ImageTexts, list[str]]:
    """Draw `count` images of the stream `seed`; their captions beside them."""
    with ProcessPoolExecutor(workers) as pool:
        drawings = list(pool.map(partial(generate.draw, seed), range(count), chunksize=256))
    vocabulary = generate.names()
    index = {name: position for position, name in enumerate(vocabulary)}
    images = np.stack([drawing.image for drawing in drawings])
    names = np.array([index[drawing.name] for drawing in drawings])
    return ImageTexts(images, names, vocabulary), [drawing.caption for drawing in drawings]


def _epoch_order(seed: int, source: int, epoch: int, count: int) -> np.ndarray:
    """The order of one source's images in one pass."""
    return np.random.default_rng([seed, 2, source, epoch]).permutation(count)
