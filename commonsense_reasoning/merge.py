"""Writes a tuned model as a plain model of transformers: python -m commonsense_reasoning.merge --model FOLDER ..."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from commonsense_reasoning.finetuning.options import TuningParser
from commonsense_reasoning.finetuning.tuned import open_tuned
from randlora_core.adapters.inject import unload_adapter
from randlora_core.adapters.merging import merge_adapter, merge_error
from randlora_core.command_line import run_command
from randlora_core.files import naming, require_folder
from randlora_core.models import Backbone
from randlora_core.models.language_models import DTYPES


def make_merge_parser() -> TuningParser:
    """The parser of the command line."""
    parser = TuningParser("merge", "Adds a tuned adapter to its base model's weights.")
    parser.add_option("model", None, "the folder of the adapter", type=str, required=True)
    parser.add_option("output_dir", None, "a new folder for the merged model", type=str, required=True)
    parser.add_option("base_model", None, "where it is not the one that the folder names", type=str)
    parser.add_option("dtype", "float32", "number format of the weights", choices=DTYPES)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(_main, arguments, "nothing was written")


def _main(arguments: Sequence[str]) -> int:
    options = make_merge_parser().parse_args(arguments)
    folder = Path(options.output_dir).expanduser()
    if folder.exists():
        raise ValueError(f"--output_dir {folder} exists already; accepted: a new folder")
    with naming("--output_dir"):
        require_folder(folder)
    backbone, _ = open_tuned(options.model, options.base_model, dtype=options.dtype)
    merge_adapter(backbone.model)
    worst = max(merge_error(backbone.model).values())
    unload_adapter(backbone.model)
    save_whole(backbone, folder)
    print(f"merged model: {folder}; rounding to {options.dtype} changed an update by at most {100 * worst:.2g} %")
    return 0


def save_whole(backbone: Backbone, folder: Path) -> None:
    """Writes model and tokenizer as transformers does, all of it or nothing.

    Raises:
        OSError: The files cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        backbone.model.save_pretrained(part)
        backbone.tokenizer.save_pretrained(part)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
