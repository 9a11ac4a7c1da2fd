"""Commonsense reasoning: language models are fine-tuned on questions of eight tasks and scored on each."""

from randlora_core.extras import needs_extra

with needs_extra("experiments"):
    import pydantic  # noqa: F401
