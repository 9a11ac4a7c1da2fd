"""The tables of the small CLIP's model card, made from the measured figures."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from randlora_core.models.mini_clip import FOLDER

CARD_FILE = FOLDER / "mini_clip.md"
FIGURES_FILE = FOLDER / "mini_clip_card.json"
CRITERION_SETS = ("caltech101", "flowers102_part", "food101")
CRITERION_POINTS = 10.0
_MARKED = re.compile(r"(<!-- figures -->\n).*(<!-- end of figures -->)", re.DOTALL)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def margins(figures: dict) -> tuple[float, float]:
    """Mean lead in points over `CRITERION_SETS`: over the random tower, and over ridge on pixels."""
    sets = [figures["datasets"][name] for name in CRITERION_SETS]
    leads = [
        sum(row["probe"]["accuracy"] - row[rival]["accuracy"] for row in sets) / len(sets)
        for rival in ("probe_random_tower", "ridge_on_pixels")
    ]
    return 100 * leads[0], 100 * leads[1]


def above_twice_chance(figures: dict) -> list[str]:
    """The sets on which zero-shot is above twice chance."""
    return [name for name, row in figures["datasets"].items() if row["zero_shot"] > 2 * row["chance"]]


def is_met(figures: dict) -> bool:
    """Whether the probe leads both rivals by enough and zero-shot is above twice chance on two sets."""
    return min(margins(figures)) >= CRITERION_POINTS and len(above_twice_chance(figures)) >= 2


def render_tables(figures: dict) -> str:
    """Markdown of the accuracy table, of what decided shipping, and of the training run."""
    return "\n".join((*_accuracy_table(figures), "", _criterion(figures), "", _training_run(figures), ""))


def _accuracy_table(figures: dict) -> list[str]:
    """One row for each set, in percent."""
    lines = [
        "| set | classes | train / test images | linear probe | random tower | ridge on pixels | zero-shot | chance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in figures["datasets"].items():
        columns = [row[key]["accuracy"] for key in ("probe", "probe_random_tower", "ridge_on_pixels")]
        shown = " | ".join(f"{100 * value:.1f}" for value in (*columns, row["zero_shot"], row["chance"]))
        lines.append(f"| {name} | {row['classes']} | {row['train_images']:,} / {row['test_images']:,} | {shown} |")
    return lines


def _criterion(figures: dict) -> str:
    """Says what the model had to reach, and what it reached."""
    over_random, over_pixels = margins(figures)
    beaten = above_twice_chance(figures)
    return (
        f"On {', '.join(CRITERION_SETS)} the probe leads the random tower by {over_random:.1f} points on average and "
        f"ridge on pixels by {over_pixels:.1f}; zero-shot is above twice chance on {len(beaten)} of "
        f"{len(figures['datasets'])} sets ({', '.join(beaten) or 'none'}). The aim - {CRITERION_POINTS:.0f} points "
        f"over both, two sets - was {'met' if is_met(figures) else 'MISSED'}."
    )


def _training_run(figures: dict) -> str:
    """Length and last figures of the training run."""
    training = figures["training"]
    losses = training["last_losses"]
    return (
        f"Training run: {training['steps']:,} steps, {training['images']:,} images seen, {training['minutes']:.0f} "
        f"minutes on two shared CPU cores; last losses {losses['contrast']:.2f} (contrast) and {losses['classes']:.2f} "
        f"(class table); zero-shot on tiny_imagenet's test split, whose classes it has seen, "
        f"{100 * training['tiny_imagenet_test_zero_shot']:.1f} %. {figures['parameters']:,} parameters; SHA-256 of the "
        f"file `{figures['weights_file_sha256']}`."
    )


def replace_tables(card: str, tables: str) -> str:
    """The card's text with new tables between its two marks.

    Raises:
        ValueError: If the marks are missing.
    """
    if not _MARKED.search(card):
        raise ValueError("the model card has no lines '<!-- figures -->' and '<!-- end of figures -->'")
    return _MARKED.sub(lambda match: match[1] + tables + match[2], card)
