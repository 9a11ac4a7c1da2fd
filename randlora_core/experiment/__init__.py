"""What every experiment shares: configuration, training, measuring, records, sweeps and tables."""

from randlora_core.extras import needs_extra

with needs_extra("experiments"):
    import pydantic  # noqa: F401
