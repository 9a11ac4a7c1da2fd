"""What a run on language models has to compute, counted from nominal sizes: examples of `LANGUAGE_TOKENS` tokens.

In the cloze form they are shorter.
"""

from __future__ import annotations

from commonsense_reasoning.sources import PUBLISHED, find_source
from randlora_core.experiment.config import RunConfig
from randlora_core.experiment.interface import Work
from randlora_core.models.work import backbone_cost

PASSES_PER_ITEM = {"generate": 2.0, "options": 3.0, "cloze": 3.0}
"""Passes of one example for an item of a test set: the question and four beams of 32 tokens, or one for each option."""

SHARE_OF_EXAMPLE = {"paper": 1.0, "cloze": 0.25}
"""Tokens of a text by its form, as a share of a nominal example's: a question and one answer are about 30."""


def count_language_work(config: RunConfig) -> Work | None:
    """The work of a `CommonsenseConfig`; None where neither steps nor a published training set tell the length."""
    training, thousands = config.training, PUBLISHED.get(config.dataset)
    if training.steps is None and config.examples is None and thousands is None:
        return None
    try:
        cost = backbone_cost(config.backbone.name, config.backbone.options)
    except (OSError, ValueError):
        return None
    tasks = find_source(config.dataset, None).tasks.values()
    items = sum(min(task.test_size, config.test_items or task.test_size) for task in tasks)
    share = SHARE_OF_EXAMPLE[config.form]
    share_asked = SHARE_OF_EXAMPLE["cloze" if config.protocol == "cloze" else "paper"]
    asked = items * PASSES_PER_ITEM[config.protocol] * share_asked * cost.example.flops
    if not config.is_fitted:
        return Work(0, asked, cost.num_bytes, 0, 0)
    num_examples = training.num_steps(config.examples or 1000 * (thousands or 0)) * training.batch_size
    return Work(
        train_flops=num_examples * share * cost.example.flops,
        evaluate_flops=asked,
        model_bytes=cost.num_bytes,
        saved_bytes=training.batch_size // training.accumulate * share * cost.example.saved_bytes,
        num_examples=num_examples,
    )
