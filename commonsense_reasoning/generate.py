"""Tries a tuned model on a prompt: python -m commonsense_reasoning.generate --model FOLDER --prompt "..."."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from commonsense_reasoning.finetuning.encoding import encode_prompt
from commonsense_reasoning.finetuning.options import TuningParser
from commonsense_reasoning.finetuning.tuned import open_tuned
from commonsense_reasoning.generation import generate
from randlora_core.command_line import run_command
from randlora_core.experiment.loop.distributed import evaluating
from randlora_core.experiment.loop.hardware import pick_device, pick_precision

KINDS = ("instruction", "chat", "text")


def make_generate_parser() -> TuningParser:
    """The parser of the command line."""
    parser = TuningParser("generate", "Lets a tuned model answer a prompt.")
    parser.add_option("model", None, "the folder of the adapter", type=str, required=True)
    parser.add_option("prompt", None, "an instruction, a message or the beginning of a text", type=str, required=True)
    parser.add_option("input", "", "further context of an instruction")
    parser.add_option("base_model", None, "where it is not the one that the folder names", type=str)
    parser.add_option("form", None, "the prompt's form, by default that of the training", type=str, choices=KINDS)
    parser.add_option("max_new_tokens", 128, "most tokens of the answer")
    parser.add_option("num_beams", 1, "beams of the search")
    parser.add_option("temperature", 0.0, "above 0, tokens are drawn instead of the most likely ones taken")
    parser.add_option("device", "auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    parser.add_option("load_4bit", False, "the base model in 4 bits")
    parser.add_option("load_8bit", False, "the base model in 8 bits")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(_main, arguments, "nothing was written")


def _main(arguments: Sequence[str]) -> int:
    options = make_generate_parser().parse_args(arguments)
    if options.load_4bit and options.load_8bit:
        raise ValueError("--load_4bit and --load_8bit exclude each other; accepted: one of them")
    for name in ("max_new_tokens", "num_beams"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"--{name} {value}; accepted: 1 or more")
    if not options.temperature >= 0:
        raise ValueError(f"--temperature {options.temperature}; accepted: 0 or more")
    device = pick_device(options.device)
    precision = pick_precision("auto", device)
    quantize = "4bit" if options.load_4bit else "8bit" if options.load_8bit else None
    settings = {"dtype": "bfloat16" if precision == "bf16" else "float32", "quantize": quantize}
    backbone, kind = open_tuned(options.model, options.base_model, device=str(device), **settings)
    prompt = encode_prompt(options.form or kind, options.prompt, options.input, backbone.tokenizer)
    decoding = {"max_new_tokens": options.max_new_tokens, "num_beams": options.num_beams, "do_sample": False}
    if options.temperature > 0:
        decoding |= {"do_sample": True, "temperature": options.temperature}
    with evaluating(backbone.model, device):
        how = {"batch_size": 1, "device": device, "precision": precision, "decoding": decoding}
        (text,) = generate(backbone.model, backbone.tokenizer, [prompt], **how)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
