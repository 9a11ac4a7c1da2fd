"""Learn the small CLIP's vocabulary: byte-level BPE over everything that pre-training may say.

python -m tools.pretrain_mini_clip.vocabulary --data PATH
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from randlora_core.models.mini_clip import VOCABULARY_FILE, read_config
from randlora_core.models.tokenizer import NUM_BYTES, merge_pair, split_words
from tools.pretrain_mini_clip import captions
from tools.pretrain_mini_clip.data import read_emoji_captions, read_natural_names


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[bytes, bytes]]:
    """The `count` merges of BPE on `texts`, the most frequent pair first, ties by bytes.

    Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.

    Raises:
        ValueError: If the texts are too few for so many merges.
    """
    frequency = Counter(word for text in texts for word in split_words(text))
    words = {word: [bytes([value]) for value in word] for word in frequency}
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(count):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += frequency[word]
        if not pairs:
            raise ValueError(f"the texts give {len(merges)} merges, {count} were asked for")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: merge_pair(parts, best) for word, parts in words.items()}
    return merges


def caption_texts(data: Path) -> list[str]:
    """Every class name, emoji caption, template and word of the generated images, once."""
    names = read_natural_names(data) + read_emoji_captions(data)
    generated = [*captions.COLOURS, *captions.SHAPES, *captions.DIRECTIONS, *captions.COUNTS, *captions.POSITIONS]
    generated += [*captions.TEXTURES, *captions.SCRIPTS, *captions.OTHER_PHRASES]
    return sorted({*names, *generated, *captions.TEMPLATES, *captions.DRAWING_TEMPLATES})


def main() -> None:
    """Write the vocabulary file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and emoji/")
    parser.add_argument("--output", type=Path, default=VOCABULARY_FILE)
    arguments = parser.parse_args()
    num_merges = read_config()["text_cfg"]["vocab_size"] - NUM_BYTES - 2
    merges = learn_merges(caption_texts(arguments.data), num_merges)
    rows = ",\n".join(json.dumps([part.decode("latin-1") for part in pair]) for pair in merges)
    arguments.output.write_text(f'{{"merges": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
