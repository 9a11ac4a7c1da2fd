"""The answer of a model as its most likely option: the protocols "options" and "cloze".

"options" compares the labels of the answers (answer1, true, ...) after the paper's prompt and the words that begin
every answer, "cloze" the text of the answers after the question. The question is run once, and each option behind its
keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from commonsense_reasoning.batches import batches_of_similar_length, pad
from commonsense_reasoning.objective import run_body, token_log_likelihoods
from commonsense_reasoning.prompts import EncodedChoice
from randlora_core.experiment.interface import Score
from randlora_core.experiment.loop.fit import compute


@dataclass(frozen=True)
class OptionScores:
    """The log-likelihoods of one question's options.

    Attributes:
        summed: Over the scored tokens of each option.
        num_tokens: How many these are.
    """

    summed: tuple[float, ...]
    num_tokens: tuple[int, ...]

    @property
    def best_per_token(self) -> int:
        """The option with the largest mean over its tokens, the score that counts; of equal ones the first."""
        means = [total / count for total, count in zip(self.summed, self.num_tokens, strict=True)]
        return int(np.argmax(means))

    @property
    def best_summed(self) -> int:
        """The option with the largest sum, which longer options seldom have."""
        return int(np.argmax(self.summed))


def score_choices(
    model: nn.Module,
    choices: Sequence[EncodedChoice],
    *,
    batch_size: int,
    filler: int,
    device: torch.device,
    precision: str,
) -> Score:
    """The accuracy of the option that is most likely per token, with that of the summed score beside it.

    Args:
        model: A causal language model of transformers, in evaluation mode and on the device.
        choices: The questions.
        batch_size: Questions per pass.
        filler: A token to pad with, which no mask mistakes for text.
        device: Where to compute.
        precision: "bf16" or "fp32".
    """
    scores = score_options(model, choices, batch_size=batch_size, filler=filler, device=device, precision=precision)
    labels = np.array([choice.correct for choice in choices])
    predicted = np.array([score.best_per_token for score in scores])
    summed = np.array([score.best_summed for score in scores])
    details = {"accuracy_summed": float((summed == labels).mean())}
    return Score(float((predicted == labels).mean()), len(labels), predicted, labels, details)


@torch.no_grad()
def score_options(
    model: nn.Module,
    choices: Sequence[EncodedChoice],
    *,
    batch_size: int,
    filler: int,
    device: torch.device,
    precision: str,
) -> list[OptionScores]:
    """The log-likelihoods of all options of all questions, in the order of the questions; arguments as above."""
    scores: dict[int, OptionScores] = {}
    for places in batches_of_similar_length([len(choice.context) for choice in choices], batch_size):
        batch = [choices[place] for place in places]
        with compute(device, precision):
            summed = _score_batch(model, batch, filler, device).tolist()
        for place, choice in zip(places, batch, strict=True):
            counts = (len(option) - given for option, given in zip(choice.options, choice.num_given, strict=True))
            scores[place] = OptionScores(tuple(summed[: len(choice.options)]), tuple(counts))
            summed = summed[len(choice.options) :]
    return [scores[place] for place in range(len(choices))]


def _score_batch(model: nn.Module, choices: Sequence[EncodedChoice], filler: int, device: torch.device) -> Tensor:
    """The summed log-likelihoods of all options of some questions, one question after the other.

    Contexts are padded at their end, where real tokens do not attend to the padding, and every position of the padding
    attends to a real token. Each option then stands at the position that follows its own context.
    """
    contexts, context_mask = pad([choice.context for choice in choices], filler, "right", device)
    context = run_body(model, contexts, attention_mask=context_mask, use_cache=True)
    lengths = context_mask.sum(dim=1)
    last = context.last_hidden_state[torch.arange(len(choices), device=device), lengths - 1]

    owner = torch.tensor([row for row, choice in enumerate(choices) for _ in choice.options], device=device)
    options, option_mask = pad([option for choice in choices for option in choice.options], filler, "right", device)
    hidden = last[owner].unsqueeze(1)  # the context's last position predicts the first token of every option
    if options.shape[1] > 1:
        cache = context.past_key_values
        cache.batch_select_indices(owner)
        mask = torch.cat([context_mask[owner], option_mask[:, :-1]], dim=1)
        positions = lengths[owner].unsqueeze(1) + torch.arange(options.shape[1] - 1, device=device)
        inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        hidden = torch.cat([hidden, run_body(model, options[:, :-1], **inputs).last_hidden_state], dim=1)

    given = torch.tensor([count for choice in choices for count in choice.num_given], device=device)
    is_scored = option_mask.bool() & (torch.arange(options.shape[1], device=device) >= given.unsqueeze(1))
    found = torch.zeros(options.shape, device=device)
    found[is_scored] = token_log_likelihoods(model, hidden[is_scored], options[is_scored])
    return found.sum(dim=1)
