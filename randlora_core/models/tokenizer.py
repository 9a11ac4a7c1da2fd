"""Byte-level BPE for the small CLIP: every string has an encoding, and the end token has the highest id.

open_clip pools the text tower at `tokens.argmax(-1)`, so the end token must be the largest id of the vocabulary.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

NUM_BYTES = 256
PADDING_ID = 0
_WORD = re.compile(r" ?[a-z]+| ?[0-9]+| ?[^a-z0-9 ]+")


def normalise(text: str) -> str:
    """Lower-case `text`, read underscores as spaces and keep one space between words."""
    return " ".join(text.lower().replace("_", " ").replace("\0", " ").split())


def split_words(text: str) -> list[bytes]:
    """Split `text` into words with their leading space, as UTF-8 bytes; BPE never merges across words."""
    return [word.encode() for word in _WORD.findall(" " + normalise(text))]


class Tokenizer:
    """Turns texts into rows of token ids: start, text, end, padding.

    Ids 0 to 255 are bytes, then one id per merge, then start, then end (the highest). Padding is id 0.

    Args:
        merges: Pairs of byte strings in the order they were learnt; each makes one new token.
        context_length: Number of ids per row; longer texts lose their last tokens but keep the end token.
    """

    def __init__(self, merges: Sequence[tuple[bytes, bytes]], context_length: int) -> None:
        self.context_length = context_length
        self.pieces: list[bytes] = [bytes([value]) for value in range(NUM_BYTES)]
        self.pieces += [left + right for left, right in merges]
        self._rank = {pair: position for position, pair in enumerate(merges)}
        self._ids = {piece: position for position, piece in enumerate(self.pieces)}
        self._known: dict[bytes, list[int]] = {}
        self.start_id = len(self.pieces)
        self.end_id = self.start_id + 1

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.end_id + 1

    @classmethod
    def from_file(cls, path: Path, context_length: int) -> Tokenizer:
        """Read the merges that `save` wrote."""
        pairs = json.loads(path.read_text(encoding="utf-8"))["merges"]
        merges = [(left.encode("latin-1"), right.encode("latin-1")) for left, right in pairs]
        return cls(merges, context_length)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without start, end and padding."""
        ids: list[int] = []
        for word in split_words(text):
            if word not in self._known:
                self._known[word] = [self._ids[piece] for piece in self._merge(word)]
            ids += self._known[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The normalised text of `ids`, which may be a whole row (start, end and padding are dropped)."""
        pieces = (self.pieces[i] for i in ids if i < self.start_id and i != PADDING_ID)
        return b"".join(pieces).decode("utf-8", errors="replace").strip()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Encode `texts` to a LongTensor (len(texts), context_length)."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = torch.full((len(texts), self.context_length), PADDING_ID, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_id, *self.encode(text)[: self.context_length - 2], self.end_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def _merge(self, word: bytes) -> list[bytes]:
        """Apply the merges to one word, the earliest learnt pair first."""
        parts = [bytes([value]) for value in word]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            parts = merge_pair(parts, best)
        return parts


def merge_pair(parts: Sequence[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Join every neighbouring occurrence of `pair` in `parts`, from the left."""
    merged: list[bytes] = []
    position = 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(parts[position])
            position += 1
    return merged
