"""Writes the generated tasks as files: python -m commonsense_reasoning.generated FOLDER."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from commonsense_reasoning.generated.facts import SPLITS
from commonsense_reasoning.generated.questions import GENERATED_TASKS, generate_records
from randlora_core.command_line import CommandParser, run_command
from randlora_core.files import atomic_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes FOLDER/dataset/<task>/{train,test}.json in the format of LLM-Adapters, and returns the exit code."""
    return run_command(_main, arguments, "what was written before is kept")


def _main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m commonsense_reasoning.generated", description=__doc__)
    parser.add_argument("folder", type=Path, help="gets dataset/<task>/train.json and test.json")
    folder = parser.parse_args(arguments).folder.expanduser()
    try:
        for name, task in GENERATED_TASKS.items():
            for split in SPLITS:
                records = [vars(record) for record in generate_records(name, split)]
                path = folder / "dataset" / task.folder / f"{split}.json"
                with atomic_file(path) as part:
                    part.write_text(json.dumps(records, indent=2), encoding="utf-8")
                print(f"{len(records):4} records in {path}")
    except OSError as error:
        print(f"error: folder {folder}: {error.strerror}; accepted: one that can be written", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
