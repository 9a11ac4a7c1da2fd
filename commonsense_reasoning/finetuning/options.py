"""The options of the fine-tuning command, which are those of PEFT's RandLoRA example and a few more."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commonsense_reasoning.batches import LossOn
from randlora_core.adapters import make_config
from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.quantization import missing_bitsandbytes
from randlora_core.command_line import CommandParser
from randlora_core.experiment.loop.hardware import pick_device

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "randlora": ("randlora", {}),
    "randlora_sparse": ("randlora", {"basis": "sparse"}),
    "randlora_very_sparse": ("randlora", {"basis": "very_sparse"}),
    "randlora_blocks": ("randlora", {"groups": "max"}),
    "randdora": ("randlora", {"magnitude": True}),
    "lora": ("lora", {}),
    "rslora": ("lora", {"rank_stabilized": True}),
    "dora": ("dora", {}),
    "vera": ("vera", {}),
    "nola": ("nola", {}),
}
"""Value of --adapter -> method and its settings beside rank, alpha, dropout and seed."""

FEWEST_ROWS = 16
"""Rows of an optimizer step; smaller micro-batches are accumulated."""


def _option(default: Any, text: str, **details: Any) -> Any:
    """A field with its default, its explanation and further arguments of argparse."""
    return dataclasses.field(default=default, metadata={"text": text, **details})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one fine-tuning. Each field is an option; its explanation is in its metadata."""

    base_model: str = _option("meta-llama/Meta-Llama-3-8B", "a name such as smollm2_135m, a folder or a hub id")
    data_path: str = _option("timdettmers/openassistant-guanaco", "a JSON, JSONL, CSV or Parquet file, or a hub id")
    output_dir: str = _option("output", "where the adapter and the checkpoints go")
    batch_size: int = _option(1, f"rows at a time; smaller ones than {FEWEST_ROWS} are accumulated to about that many")
    num_epochs: float = _option(3.0, "passes over the training rows", type=float)
    learning_rate: float = _option(3e-4, "peak; a tenth of the steps rises to it, the others fall to 0")
    cutoff_len: int = _option(512, "most tokens of a row; its end is cut off")
    val_set_size: int = _option(500, "rows held out for validation, at most a fifth of all; 0 for none")
    eval_step: int = _option(10, "optimizer steps between two validations")
    save_step: int = _option(100, "optimizer steps between two checkpoints; the newest two are kept")
    device: str = _option("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    rank: int = _option(32, "the adapter's rank; of RandLoRA, a higher rank means fewer parameters")
    randlora_alpha: float | None = _option(
        None, "numerator of the scale; by default 20 times the rank for RandLoRA, 2 times for LoRA and DoRA", type=float
    )
    randlora_dropout: float = _option(0.05, "dropout of the adapter's input")
    randlora_target_modules: str = _option("k_proj,v_proj", "the layers to adapt, ends of their names, by commas")
    adapter: str | None = _option(
        None, "the method, by default randlora; `--help` lists them", type=str, choices=tuple(ADAPTERS)
    )
    use_lora: bool = _option(False, "the same as --adapter lora")
    sparse: bool = _option(False, "RandLoRA with sparse bases, the same as --adapter randlora_sparse")
    very_sparse: bool = _option(False, "RandLoRA with very sparse bases, the same as --adapter randlora_very_sparse")
    quantize: bool = _option(False, "the base model in 4 bits (NF4), by bitsandbytes")
    load_4bit: bool = _option(False, "the same as --quantize")
    load_8bit: bool = _option(False, "the base model in 8 bits (LLM.int8()), by bitsandbytes")
    answer_only: bool = _option(False, "no loss on prompts, only on answers")
    gradient_checkpointing: bool = _option(False, "less memory and more time: activations are computed again")
    precision: str = _option(
        "auto",
        "bf16, fp32, or auto: bf16 where the hardware multiplies it; the base model's weights have it, too",
        choices=("auto", "bf16", "fp32"),
    )
    seed: int = _option(0, "decides the order of the rows, initial values, dropout and random bases")
    resume: bool = _option(False, "go on from the newest checkpoint in --output_dir")
    push_to_hub: bool = _option(False, "upload the adapter to --hub_model_id")
    hub_model_id: str | None = _option(None, "the hub repository to upload to", type=str)
    tracking: str = _option("none", "where curves are sent, none or wandb", choices=("none", "wandb"))

    @property
    def bits(self) -> str | None:
        """How the base model is quantised: "4bit", "8bit" or None."""
        return "8bit" if self.load_8bit else "4bit" if self.quantize or self.load_4bit else None

    @property
    def targets(self) -> tuple[str, ...]:
        """The ends of names of the layers to adapt."""
        return tuple(part.strip() for part in self.randlora_target_modules.split(",") if part.strip())

    @property
    def loss_on(self) -> LossOn:
        """Which tokens carry loss."""
        return "answer" if self.answer_only else "full"

    @property
    def accumulate(self) -> int:
        """Micro-batches of an optimizer step, over all processes."""
        return max(1, FEWEST_ROWS // self.batch_size)

    @property
    def adapter_name(self) -> str:
        """A key of `ADAPTERS`.

        Raises:
            ValueError: The options name more than one.
        """
        named = {"lora": self.use_lora, "randlora_sparse": self.sparse, "randlora_very_sparse": self.very_sparse}
        chosen = {name for name, is_named in named.items() if is_named} | ({self.adapter} if self.adapter else set())
        if len(chosen) > 1:
            given = [f"--{key}" for key in ("adapter", "use_lora", "sparse", "very_sparse") if getattr(self, key)]
            raise ValueError(f"{' and '.join(given)} name different adapters; accepted: one of them")
        return next(iter(chosen), "randlora")

    def adapter_config(self) -> AdapterConfig:
        """The adapter's settings.

        Raises:
            ValueError: A value is outside its range or has no effect.
        """
        method, settings = ADAPTERS[self.adapter_name]
        given = {"rank": self.rank, "dropout": self.randlora_dropout, **settings}
        if method in ("randlora", "vera", "nola"):
            given["seed"] = self.seed
        if self.randlora_alpha is not None:
            if method == "vera":
                raise ValueError(f"--randlora_alpha {self.randlora_alpha:g} has no effect: VeRA has no alpha")
            given["alpha"] = self.randlora_alpha
        return make_config(method, **given)


class TuningParser(CommandParser):
    """A parser whose options may be written with - in place of _."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"python -m commonsense_reasoning.{command}", description=description, allow_abbrev=False)

    def add_option(self, name: str, default: Any, text: str, **details: Any) -> None:
        """Adds an option with its default; where that is False, the option takes no value."""
        names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        if default is False:
            details["action"] = "store_true"
        else:
            details = {"type": type(default), **details}
            text += "" if default is None else f" (default: {default})"
        self.add_argument(*names, default=default, help=text, **details)


def make_options_parser() -> TuningParser:
    """The parser of the command line."""
    parser = TuningParser("finetune", "Fine-tunes a causal language model on your data.")
    for field in dataclasses.fields(Options):
        parser.add_option(field.name, field.default, **field.metadata)
    return parser


def read_options(arguments: Sequence[str]) -> Options:
    """The options of a command line.

    Raises:
        ValueError: One line for each value that is not accepted.
    """
    values = vars(make_options_parser().parse_args(arguments))
    options = Options(**{field.name: values[field.name] for field in dataclasses.fields(Options)})
    if problems := list(_find_problems(options)):
        raise ValueError("\n".join(problems))
    return options


def _find_problems(options: Options) -> Iterator[str]:
    """A line for each value that is wrong by itself or beside another one."""
    yield from _numbers_out_of_range(options)
    try:
        options.adapter_config()
    except ValueError as error:
        yield str(error)
    if not options.targets:
        yield f"--randlora_target_modules {options.randlora_target_modules!r} names no layer; accepted: k_proj,v_proj"
    if options.load_8bit and (options.quantize or options.load_4bit):
        yield "--load_8bit and --quantize exclude each other; accepted: one of them"
    if options.bits and (missing := missing_bitsandbytes()):
        yield f"loading in {options.bits} {missing}"
    if options.push_to_hub != (options.hub_model_id is not None):
        yield "--push_to_hub and --hub_model_id need each other; accepted: both or none"
    if options.tracking == "wandb" and importlib.util.find_spec("wandb") is None:
        yield '--tracking wandb needs wandb: pip install "randlora[experiments]"'
    try:
        pick_device(options.device)
    except ValueError as error:
        yield f"--{error}"
    if options.base_model.startswith((".", "/", "~")) and not Path(options.base_model).expanduser().is_dir():
        yield f"--base_model {options.base_model}: there is no such folder"


def _numbers_out_of_range(options: Options) -> Iterator[str]:
    for name in ("batch_size", "cutoff_len", "eval_step", "save_step"):
        if (value := getattr(options, name)) < 1:
            yield f"--{name} {value}; accepted: 1 or more"
    for name in ("num_epochs", "learning_rate"):
        if not 0 < (value := getattr(options, name)) < float("inf"):
            yield f"--{name} {value}; accepted: a number above 0"
    for name in ("val_set_size", "seed"):
        if (value := getattr(options, name)) < 0:
            yield f"--{name} {value}; accepted: 0 or more"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if options.batch_size >= 1 and options.accumulate % processes:
        yield (
            f"--batch_size {options.batch_size} gives {options.accumulate} micro-batches per step; "
            f"accepted: a size that gives a multiple of the {processes} processes"
        )
