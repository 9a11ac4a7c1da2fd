"""A tiny model with a tokenizer, and small files of data, for tests of the fine-tuning command."""

import json

import torch
from tokenizers_at_hand import make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ("stone", "river", "candle", "feather", "ladder", "bucket", "mirror", "needle", "pillow", "window")


def instruction(number):
    """A row whose answer follows from its words."""
    first, second = WORDS[number % 10], WORDS[(number // 10 + 3) % 10]
    context = f"The {first} is {number}." if number % 3 == 0 else ""
    return {"instruction": f"Which is heavier, {first} or {second}?", "input": context, "output": f"the {first}"}


def write_json(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def make_model(folder, **sizes):
    """A folder with a random Llama, whose predictions depend on all of the text, and its tokenizer."""
    rows = [instruction(number) for number in range(100)]
    tokenizer = make_tokenizer([" ".join(row.values()) for row in rows], size=400)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(model, data, output, *others):
    """The arguments of a short run in float32 on the CPU."""
    settings = ["--batch_size", "4", "--num_epochs", "2", "--learning_rate", "1e-2", "--val_set_size", "8"]
    settings += ["--eval_step", "2", "--save_step", "3", "--rank", "4", "--precision", "fp32", "--device", "cpu"]
    places = ["--base_model", str(model), "--data_path", str(data), "--output_dir", str(output)]
    return [*places, *settings, *map(str, others)]
