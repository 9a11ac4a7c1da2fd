"""Rows as tokens: instructions in the prompt of the experiment, conversations in the tokenizer's chat template, texts.

A prompt and its answer are tokenised apart, so that a tuned model continues exactly the tokens that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from commonsense_reasoning.batches import LossOn
from commonsense_reasoning.finetuning.rows import Kind, Rows
from commonsense_reasoning.prompts import (
    EncodedExample,
    Example,
    encode_context,
    encode_continuation,
    encode_example,
    end_token,
    paper_prompt,
)
from randlora_core.streams import Stream

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""The chat template of tokenizers that have none."""

MAX_VALIDATION_SHARE = 0.2

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class TuningData:
    """What a fine-tuning trains on and validates with.

    Attributes:
        kind: What the rows are.
        train: The training rows.
        validation: Rows that are not trained on; the choice depends on no seed.
        remarks: What became of rows that are cut off or left out.
    """

    kind: Kind
    train: tuple[EncodedExample, ...]
    validation: tuple[EncodedExample, ...]
    remarks: tuple[str, ...]


def prepare_data(rows: Rows, tokenizer: Any, *, cutoff: int, loss_on: LossOn, validation: int) -> TuningData:
    """Encodes rows and holds some out.

    Rows of which no token carries loss are left out.

    Args:
        rows: As `read_rows` gives them.
        tokenizer: A tokenizer of transformers.
        cutoff: Most tokens of a row.
        loss_on: Which tokens carry loss.
        validation: Rows to hold out; at most a fifth of all are.

    Raises:
        ValueError: All answers are cut off, no row has a token with loss, texts have no answers to restrict the loss
            to, or a conversation does not fit the chat template.
    """
    if rows.kind == "text" and loss_on == "answer":
        raise ValueError("--answer_only has no effect on rows of plain text; accepted: instructions or chat messages")
    encoded = [encode_row(rows.kind, row, tokenizer, cutoff, loss_on) for row in rows.values]
    num_cut, what = sum(example.is_cut for example in encoded), "texts" if rows.kind == "text" else "answers"
    if num_cut == len(encoded) and rows.kind != "text":
        raise ValueError(f"--cutoff_len {cutoff} cuts off the answers of all {num_cut:,} rows; accepted: a larger one")
    kept = [example for example in encoded if _has_loss(example, loss_on)]
    if not kept:
        raise ValueError(f"--cutoff_len {cutoff} leaves no token to predict in any of {len(encoded):,} rows")
    remarks = [f"{num_cut:,} of {len(encoded):,} {what} are cut off at {cutoff} tokens."] if num_cut else []
    if len(kept) < len(encoded):
        remarks.append(f"{len(encoded) - len(kept):,} rows have no token with loss and are left out.")
    num_held_out = min(validation, int(MAX_VALIDATION_SHARE * len(kept)))
    if num_held_out < validation:
        most = "a fifth of all is the most"
        remarks.append(f"{num_held_out:,} rows are held out for validation instead of {validation:,}: {most}.")
    order = np.argsort(Stream("validation rows").array(len(kept)), kind="stable")
    held_out = {int(place) for place in order[:num_held_out]}
    return TuningData(
        rows.kind,
        tuple(example for place, example in enumerate(kept) if place not in held_out),
        tuple(kept[place] for place in sorted(held_out)),
        tuple(remarks),
    )


def encode_row(kind: Kind, row: Any, tokenizer: Any, cutoff: int, loss_on: LossOn) -> EncodedExample:
    """A row as tokens, the end token behind it."""
    if kind == "chat":
        return _encode_chat(tokenizer, row, cutoff, loss_on)
    if kind == "text":
        return encode_example(tokenizer, Example((row,), ""), cutoff)
    return encode_example(tokenizer, Example((paper_prompt(row["instruction"], row["input"]),), row["output"]), cutoff)


def encode_prompt(kind: Kind, prompt: str, context: str, tokenizer: Any) -> list[int]:
    """The tokens that a model tuned on rows of this kind is to continue.

    Args:
        kind: What the rows were.
        prompt: An instruction, what the user says, or the beginning of a text.
        context: An instruction's input; "" for none.
        tokenizer: A tokenizer of transformers.
    """
    if kind == "chat":
        return _tokens(tokenizer, _render(tokenizer, [{"role": "user", "content": prompt}], to_answer=True))
    return encode_context(tokenizer, (paper_prompt(prompt, context) if kind == "instruction" else prompt,))


def _has_loss(example: EncodedExample, loss_on: LossOn) -> bool:
    first = example.answer_start if loss_on == "answer" else 0
    return len(example.tokens) > max(first, 1)


def _encode_chat(tokenizer: Any, messages: Messages, cutoff: int, loss_on: LossOn) -> EncodedExample:
    parts = _split_turns(tokenizer, messages)
    if parts is None:
        if loss_on == "answer":
            raise ValueError(
                "--answer_only: the tokenizer's chat template writes an answer otherwise where turns follow it; "
                "accepted: conversations of one answer, or no --answer_only"
            )
        parts = [(_render(tokenizer, messages), True)]
    tokens, given, end, answer_start = [], [], end_token(tokenizer), None
    for text, is_answer in parts:
        begin = len(tokens)
        tokens += encode_continuation(tokenizer, text) if tokens else _tokens(tokenizer, text)
        if is_answer:
            answer_start = begin if answer_start is None else answer_start
        elif answer_start is not None:
            given.append((begin, len(tokens)))
    if is_answer and end not in tokens[begin:]:
        tokens.append(end)
    answer_start = min(answer_start, cutoff)
    return EncodedExample(tuple(tokens[:cutoff]), answer_start, len(tokens) > cutoff, tuple(given))


def _split_turns(tokenizer: Any, messages: Messages) -> list[tuple[str, bool]] | None:
    """A conversation as the template writes it, in parts, each with whether it is an answer of the assistant's.

    None where that cannot be told, since the template changes what it has written when turns follow.
    """
    whole, done = _render(tokenizer, messages), 0
    parts = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:place], to_answer=True)
        after = _render(tokenizer, messages[: place + 1])
        if not (after.startswith(before) and whole.startswith(after) and len(before) >= done):
            return None
        parts += [(whole[done : len(before)], False), (whole[len(before) : len(after)], True)]
        done = len(after)
    return [(text, is_answer) for text, is_answer in [*parts, (whole[done:], False)] if text]


def _render(tokenizer: Any, messages: Messages, *, to_answer: bool = False) -> str:
    """A conversation as text; with `to_answer` up to where the assistant's next answer begins."""
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    settings = {"chat_template": template, "add_generation_prompt": to_answer, "tokenize": False}
    try:
        return tokenizer.apply_chat_template(list(messages), **settings)
    except Exception as error:  # templates raise what they like
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the tokenizer's chat template refuses the roles {roles}: {error}") from error


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text in which the template has written all special ones."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)
