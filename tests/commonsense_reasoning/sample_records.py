"""Records in LLM-Adapters' format that the tests make, and the folder of the real ones if there is one."""

import json
import os

import pytest

from commonsense_reasoning.tasks import ANSWER_OPENING, CHOICES, ENDINGS, GAP, SOLUTIONS, TASKS, TRUE_FALSE

REAL = os.environ.get("RANDLORA_COMMONSENSE_DATA")
"""The folder of LLM-Adapters, in which `dataset` lies."""
needs_real_files = pytest.mark.skipif(REAL is None, reason="RANDLORA_COMMONSENSE_DATA names no folder of real records")
WORDS = ("stone", "river", "candle", "feather", "ladder", "bucket", "mirror", "needle", "pillow", "window")


def make_record(layout, number):
    """A record whose right answer and words depend on its number."""
    words = [WORDS[(number + 3 * step) % len(WORDS)] for step in range(5)]
    correct = number % (2 if layout in (TRUE_FALSE, SOLUTIONS, GAP) else 3 if layout is CHOICES else 4)
    answer = layout.labels[correct]
    if layout is TRUE_FALSE:
        text = f"is a {words[0]} number {number} heavy?\n\nAnswer format: true/false"
    elif layout is SOLUTIONS:
        text = f"Move the {words[0]} {number}\n\nSolution1: lift the {words[1]}\n\nSolution2: push the {words[2]}"
        text += "\n\nAnswer format: solution1/solution2"
    elif layout is CHOICES:
        options = " ".join(f"Answer{place}: the {words[place]}" for place in (1, 2, 3))
        text = f"What lies beside the {words[0]} {number}?\n\n{options}\n\nAnswer format: answer1/answer2/answer3"
    elif layout is ENDINGS:
        options = " ".join(f"Ending{place}: takes the {words[place]}." for place in (1, 2, 3, 4))
        text = f"At home: A man sees a {words[0]} {number}. he\n\n{options}\n\n"
        text += "Answer format: ending1/ending2/ending3/ending4"
    else:
        text = f"The {words[1]} hit the {words[2]} and the _ broke {number}.\n\n"
        text += f"Option1: {words[1]} Option2: {words[2]} Answer format: option1/option2"
    return {
        "instruction": layout.opening + text,
        "input": "",
        "output": f"{ANSWER_OPENING} {answer}",
        "answer": answer,
    }


def write_tasks(folder, *, test=6, train=12, untrained=("piqa", "hellaswag")):
    """Writes a folder of all eight tasks as LLM-Adapters' `dataset`; those of `untrained` get no training file."""
    for place, (name, task) in enumerate(TASKS.items()):
        for split, count, first in (("test", test, 1000 * place), ("train", train, 1000 * place + 500)):
            if split == "train" and name in untrained:
                continue
            path = folder / "dataset" / task.folder / f"{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([make_record(task.layout, first + number) for number in range(count)]))
    return folder


def write_parquet(path, rows):
    """Writes rows as `datasets` finds them on the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
