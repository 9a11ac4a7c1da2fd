"""What the experiments on images share: configuration, data, models, batches, class texts, linear probe, scoring."""

from randlora_core.extras import needs_extra

with needs_extra("experiments"):
    import pydantic  # noqa: F401
