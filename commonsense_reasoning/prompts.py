"""Records and questions as text and as tokens, for training and for evaluation alike.

There are two forms. "paper" is the prompt of LLM-Adapters, answered by "the correct answer is ...". "cloze" leaves out
the options and is answered by the text of one of them.

Departures from LLM-Adapters:

- Its prompts for training and for evaluation differ by whitespace in two places; here both are its training prompt.
- A prompt and its answer are tokenised apart, so that a model is evaluated after exactly the tokens that it was
  trained on. There the last spaces of the training prompt make one token with the first word of the answer.
- Padding is told from text by its position and not by its token, see `commonsense_reasoning.batches`. There it is the
  token 0, a real one for many models ("!" for Llama-3 and Qwen2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from commonsense_reasoning.tasks import ANSWER_OPENING, Question, Record

HEADER = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n\n"
)
HEADER_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.  \n\n"
)
INDENT = 16 * " "


def paper_prompt(instruction: str, context: str = "") -> str:
    """The prompt of LLM-Adapters, up to where the answer begins.

    Args:
        instruction: The instruction; only its first line is indented.
        context: The record's input; "" for none.
    """
    sections = {"Instruction": instruction, **({"Input": context} if context else {})}
    text = "".join(f"{INDENT}### {title}:\n{INDENT}{body}\n{INDENT}\n" for title, body in sections.items())
    return f"{HEADER_WITH_INPUT if context else HEADER}{text}{INDENT}### Response:\n{INDENT}"


@dataclass(frozen=True)
class Example:
    """A text to learn, in parts that are tokenised apart.

    Attributes:
        context: What stands before the answer.
        answer: The answer; an end token follows it.
    """

    context: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Choice:
    """Continuations of a context, of which the most likely one is a model's answer.

    Attributes:
        context: What all options share, in parts that are tokenised apart.
        options: For each option the text that is given ("" for none) and the text behind it that is scored.
        correct: Index of the right option.
    """

    context: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    correct: int


def paper_example(record: Record) -> Example:
    """A record to learn in the paper's form."""
    return Example((paper_prompt(record.instruction, record.input),), record.output)


def cloze_example(question: Question) -> Example:
    """A question to learn in the cloze form: of its right option the text that `cloze_choice` scores."""
    choice = cloze_choice(question)
    given, scored = choice.options[choice.correct]
    return Example((*choice.context, given) if given else choice.context, scored)


def label_choice(record: Record, question: Question) -> Choice:
    """The labels of a record's answers after the prompt of the paper and the words that begin every answer."""
    context = (paper_prompt(record.instruction, record.input), ANSWER_OPENING)
    labels = question.layout.labels[: len(question.options)]
    return Choice(context, tuple(("", f" {label}") for label in labels), question.correct)


def cloze_choice(question: Question) -> Choice:
    """The options of a question as continuations of it, as its layout's `cloze` says.

    An option that is put into a gap is given, and what follows the gap is scored.
    """
    passage = f"{question.passage}\n" if question.passage else ""
    if question.layout.cloze == "gap":
        before, after = question.text.split("_")
        context = before.rstrip()
        space = before[len(context) :]
        options = tuple((f"{space}{option}", after) for option in question.options)
        return Choice((passage + context,), options, question.correct)
    is_sentence = question.layout.cloze == "sentence"
    context = question.text if is_sentence else f"Question: {question.text}\nAnswer:"
    return Choice((passage + context,), tuple(("", f" {option}") for option in question.options), question.correct)


@dataclass(frozen=True)
class EncodedExample:
    """The tokens of an example.

    Attributes:
        tokens: At most as many as the cutoff.
        answer_start: Index of the first token of the answer; `len(tokens)` where all of it is cut off.
        is_cut: Whether the end of the answer, its end token included, is cut off.
        given: Stretches [begin, end) behind `answer_start` that are no part of an answer, as a conversation has them.
    """

    tokens: tuple[int, ...]
    answer_start: int
    is_cut: bool
    given: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class EncodedChoice:
    """The tokens of a choice.

    Attributes:
        context: At least one token.
        options: For each option the tokens that follow the context.
        num_given: For each option how many of these are given; the others, at least one, are scored.
        correct: Index of the right option.
    """

    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    num_given: tuple[int, ...]
    correct: int


def end_token(tokenizer: Any) -> int:
    """The token that ends an answer.

    Raises:
        ValueError: The tokenizer has none, so that a model could not learn to end.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token; accepted: one with eos_token")
    return tokenizer.eos_token_id


def encode_context(tokenizer: Any, parts: tuple[str, ...]) -> list[int]:
    """The tokens of a context, begun as the tokenizer begins every text; of an empty one its BOS or else its end token.

    Args:
        tokenizer: A tokenizer of transformers.
        parts: The context in parts that are tokenised apart.
    """
    tokens = list(tokenizer(parts[0]).input_ids)
    if tokens[-1:] == [end_token(tokenizer)]:  # some tokenizers end every text
        del tokens[-1]
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end_token(tokenizer)
    tokens = tokens or [begin]
    for part in parts[1:]:
        tokens += encode_continuation(tokenizer, part)
    return tokens


def encode_continuation(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that continues another one.

    A tokenizer of sentencepiece's kind puts a space before every text, which a continuation must not get. So the text
    is tokenised behind a line break, whose tokens are then left out.
    """
    line_break = tokenizer("\n", add_special_tokens=False).input_ids
    tokens = tokenizer("\n" + text, add_special_tokens=False).input_ids
    if tokens[: len(line_break)] != line_break:  # the text begins with what makes one token with a line break
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokens[len(line_break) :])


def encode_example(tokenizer: Any, example: Example, cutoff: int) -> EncodedExample:
    """An example as tokens, the end token behind the answer, cut off at its end.

    Args:
        tokenizer: A tokenizer of transformers.
        example: The example.
        cutoff: Most tokens.
    """
    context = encode_context(tokenizer, example.context)
    whole = [*context, *encode_continuation(tokenizer, example.answer), end_token(tokenizer)]
    return EncodedExample(tuple(whole[:cutoff]), min(len(context), cutoff), len(whole) > cutoff)


def encode_examples(tokenizer: Any, examples: Iterable[Example], cutoff: int) -> list[EncodedExample]:
    """Examples as tokens, see `encode_example`.

    Raises:
        ValueError: No answer has a token within the cutoff.
    """
    encoded = [encode_example(tokenizer, example, cutoff) for example in examples]
    if all(example.answer_start == len(example.tokens) for example in encoded):
        raise ValueError(f"cutoff={cutoff} leaves no token of any of {len(encoded)} answers; accepted: a larger one")
    return encoded


def encode_choice(tokenizer: Any, choice: Choice) -> EncodedChoice:
    """A choice as tokens; nothing is cut off, and no end token follows."""
    given = [encode_continuation(tokenizer, text) if text else [] for text, _ in choice.options]
    scored = [encode_continuation(tokenizer, text) for _, text in choice.options]
    options = tuple((*first, *second) for first, second in zip(given, scored, strict=True))
    return EncodedChoice(
        tuple(encode_context(tokenizer, choice.context)), options, tuple(map(len, given)), choice.correct
    )
