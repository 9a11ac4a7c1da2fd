"""Everything about a fine-tuning that can be checked before the base model is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commonsense_reasoning.finetuning.checkpoints import check_resumable, identify
from commonsense_reasoning.finetuning.encoding import TuningData, prepare_data
from commonsense_reasoning.finetuning.hub import check_login
from commonsense_reasoning.finetuning.options import Options
from commonsense_reasoning.finetuning.output import FILES
from commonsense_reasoning.finetuning.rows import read_rows
from randlora_core.adapters.inject import plan_injection
from randlora_core.experiment.loop.hardware import is_first_process, pick_device, pick_precision
from randlora_core.files import naming, require_folder
from randlora_core.models import Backbone
from randlora_core.models.language_models import LANGUAGE_MODELS, build_language_model, load_tokenizer

FREE = ("data_path", "output_dir", "device", "save_step", "resume", "push_to_hub", "hub_model_id", "tracking")
"""Options that may be others when a run is resumed; the data count by their tokens."""


@dataclass(frozen=True)
class PlannedTuning:
    """A fine-tuning that was checked and can be carried out.

    Attributes:
        options: The options.
        folder: The output folder.
        name: The base model's name in `BACKBONES`.
        path: Its folder or hub id, where the name does not say it.
        tokenizer: Its tokenizer.
        data: The rows.
        precision: "bf16" or "fp32".
        settings: What decides the numbers of the run.
        resumed_at: Steps that were done before.
    """

    options: Options
    folder: Path
    name: str
    path: str | None
    tokenizer: Any
    data: TuningData
    precision: str
    settings: dict[str, Any]
    resumed_at: int

    @property
    def steps(self) -> int:
        """Optimizer steps; the last, smaller one of an epoch counts as one."""
        rows = self.options.batch_size * self.options.accumulate
        return max(1, -(-round(self.options.num_epochs * len(self.data.train)) // rows))

    @property
    def dtype(self) -> str:
        """Number format of the base model's weights."""
        return "bfloat16" if self.precision == "bf16" else "float32"

    @property
    def key(self) -> str:
        """The identity of the run."""
        return identify(self.settings)


def find_base(base_model: str) -> tuple[str, str | None]:
    """A base model's name in `BACKBONES` and, for models that have no name there, its folder or hub id."""
    return (base_model, None) if base_model in LANGUAGE_MODELS else ("causal_lm", base_model)


def plan_tuning(options: Options) -> PlannedTuning:
    """Reads tokenizer and data and checks them, the model's structure, the output folder and the hub's login.

    Raises:
        ValueError: One line for everything that is not accepted or cannot be had.
    """
    folder = Path(options.output_dir).expanduser()
    problems: list[str] = []
    if not options.resume:
        with _collected(problems):
            check_unused(folder)
    if options.push_to_hub and is_first_process():
        with _collected(problems):
            check_login()
    rows = tokenizer = structure = data = None
    name, path = find_base(options.base_model)
    with _collected(problems):
        rows = read_rows(options.data_path)
    with _collected(problems):
        tokenizer = load_tokenizer(name, path)
        structure = check_structure(options, name, path)
    if rows and tokenizer:
        with _collected(problems):
            settings = {"cutoff": options.cutoff_len, "loss_on": options.loss_on, "validation": options.val_set_size}
            data = prepare_data(rows, tokenizer, **settings)
            if structure is not None:
                check_vocabulary(data, structure)
    if problems:
        raise ValueError("\n".join(problems))
    precision = pick_precision(options.precision, pick_device(options.device))
    settings = _settings(options, data, precision)
    resumed_at = check_resumable(folder, settings) if options.resume else 0
    return PlannedTuning(options, folder, name, path, tokenizer, data, precision, settings, resumed_at)


@contextlib.contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    """Adds what the body complains of to a list."""
    try:
        yield
    except (ValueError, OSError) as error:
        problems.append(str(error))


def check_unused(folder: Path) -> None:
    """Refuses a folder that cannot be written, or with anything that would be overwritten or taken for this run's.

    Raises:
        ValueError: Naming what is there.
    """
    with naming("--output_dir"):
        there = require_folder(folder)
    if not os.access(there, os.W_OK):
        raise ValueError(f"--output_dir {folder}: {there} cannot be written")
    there = [file for file in FILES if (folder / file).exists()]
    there += sorted(path.name for path in folder.glob("checkpoint-*"))
    if there:
        raise ValueError(
            f"--output_dir {folder} has {', '.join(there)} already; accepted: another folder, or --resume to go on"
        )


def check_structure(options: Options, name: str, path: str | None) -> Backbone:
    """Checks the adapter against the model's structure, which is built without weights.

    Returns:
        The model without weights.

    Raises:
        ValueError: A layer is missing or does not allow the rank, or texts may be longer than the model takes.
        OSError: The structure cannot be had.
    """
    backbone = build_language_model(name, path=path, pretrained=False, device="meta")
    try:
        plan_injection(backbone.model, options.adapter_config(), options.targets)
    except ValueError as error:
        raise ValueError(f"--rank {options.rank}, --randlora_target_modules: {error}") from error
    if backbone.max_length is not None and options.cutoff_len > backbone.max_length:
        raise ValueError(f"--cutoff_len {options.cutoff_len}; accepted: up to {backbone.max_length}, the model's limit")
    return backbone


def check_vocabulary(data: TuningData, backbone: Backbone) -> None:
    """Checks that the model has all tokens of the data.

    Raises:
        ValueError: It has not.
    """
    largest = max(max(example.tokens) for example in (*data.train, *data.validation))
    if largest >= (size := backbone.model.get_input_embeddings().num_embeddings):
        raise ValueError(f"--base_model: its tokenizer gives the token {largest}, but it has only {size:,}")


def _settings(options: Options, data: TuningData, precision: str) -> dict[str, Any]:
    """What decides the numbers of a run, as plain values."""
    tokens = [[example.tokens, example.answer_start, example.given] for example in (*data.train, *data.validation)]
    return {
        **{key: value for key, value in dataclasses.asdict(options).items() if key not in FREE},
        "precision": precision,
        "data": hashlib.sha256(json.dumps([len(data.train), tokens]).encode()).hexdigest(),
    }
