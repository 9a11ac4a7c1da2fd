"""What the experiments on images share: their configuration, data, batches, the linear probe and the scoring."""

from randlora_core.extras import needs_extra

with needs_extra("experiments"):
    import pydantic  # noqa: F401
