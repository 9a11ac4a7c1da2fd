"""The answer of a model as text: the protocol "generate", LLM-Adapters' prompt, beams and regular expressions.

Departure from LLM-Adapters: prompts are batched, padded on the left and masked. There they come one by one, without a
mask and with the token 0 as padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from commonsense_reasoning.batches import batches_of_similar_length, pad
from commonsense_reasoning.prompts import encode_context, end_token, paper_prompt
from commonsense_reasoning.tasks import Layout, Question, Record
from randlora_core.experiment.interface import Score
from randlora_core.experiment.loop.fit import compute

DECODING = {
    "num_beams": 4,
    "max_new_tokens": 32,
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""LLM-Adapters' decoding; what is not said would come from the model's own generation_config.json."""

RESPONSE = "### Response:"

COMPARED = 32
"""Items of a task whose answers are generated once more in bf16, one by one, which is much slower than in batches."""


def score_answers(
    model: nn.Module,
    tokenizer: Any,
    records: Sequence[Record],
    questions: Sequence[Question],
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> Score:
    """The accuracy of generated answers.

    An answer that cannot be read is wrong; as prediction it has the index behind that of the last label.

    In bf16 the rounding depends on the shape of a batch, so that a text may be another one alone than among others. How
    often it is, is measured on up to `COMPARED` items: `batch_disagreement` among the details is the share whose text
    differs, `batch_compared` their number. In fp32 texts do not depend on the batch, which tests see to.

    Args:
        model: A causal language model of transformers, in evaluation mode and on the device.
        tokenizer: Its tokenizer.
        records: The items of one task.
        questions: The same, taken apart.
        batch_size: Prompts per pass.
        device: Where to compute.
        precision: "bf16" or "fp32".
    """
    prompts = [encode_context(tokenizer, (paper_prompt(record.instruction, record.input),)) for record in records]
    texts = generate(model, tokenizer, prompts, batch_size=batch_size, device=device, precision=precision)
    predicted = np.array([read_answer(text, questions[0].layout) for text in texts])
    labels = np.array([question.correct for question in questions])
    details = {"unparseable": float((predicted == len(questions[0].layout.labels)).mean())}
    if precision == "bf16" and batch_size > 1:
        count = min(COMPARED, len(prompts))
        places = [number * len(prompts) // count for number in range(count)]
        settings = {"batch_size": 1, "device": device, "precision": precision}
        alone = generate(model, tokenizer, [prompts[place] for place in places], **settings)
        differing = sum(text != texts[place] for text, place in zip(alone, places, strict=True))
        details |= {"batch_disagreement": differing / count, "batch_compared": count}
    return Score(float((predicted == labels).mean()), len(labels), predicted, labels, details)


def read_answer(text: str, layout: Layout) -> int:
    """The index of the label that a generated text gives; that behind the last one where it gives none."""
    answer = layout.extract_answer(text.rpartition(RESPONSE)[2])
    return len(layout.labels) if answer is None else layout.labels.index(answer)


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    decoding: Mapping[str, Any] = DECODING,
) -> list[str]:
    """What a model writes after each prompt, up to its end token.

    The end token is also what padding consists of: a mask tells it from text, and nothing behind the first end token of
    what is written counts.

    Args:
        model: A causal language model of transformers, in evaluation mode and on the device.
        tokenizer: Its tokenizer.
        prompts: Tokens.
        batch_size: Prompts per pass.
        device: Where to compute.
        precision: "bf16" or "fp32".
        decoding: Fields of transformers' GenerationConfig.
    """
    from transformers import GenerationConfig

    end = end_token(tokenizer)
    settings = GenerationConfig(eos_token_id=end, pad_token_id=end, **decoding)
    texts: dict[int, str] = {}
    for places in batches_of_similar_length([len(prompt) for prompt in prompts], batch_size):
        tokens, mask = pad([prompts[place] for place in places], end, "left", device)
        with compute(device, precision):
            written = model.generate(tokens, attention_mask=mask, generation_config=settings)
        for place, row in zip(places, written[:, tokens.shape[1] :].tolist(), strict=True):
            row = row[: row.index(end)] if end in row else row
            texts[place] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return [texts[place] for place in range(len(prompts))]
