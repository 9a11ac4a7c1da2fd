"""What makes two runs the same run."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

PROTOCOL = 1
"""Raised by any change of the code that changes what a configuration trains or measures, beyond the rounding of its
arithmetic: old records count no more."""

NOT_IDENTITY = ("paths", "device", "threads", "workers", "save", "tracking")
"""Sections of a configuration that do not decide a run's numbers."""


def canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a nested configuration that decides a run's numbers."""
    return {key: copy.deepcopy(value) for key, value in config.items() if key not in NOT_IDENTITY}


def run_id(config: Mapping[str, Any], *, data: str, weights: str, experiment: str) -> str:
    """Sixteen hexadecimal digits that change with anything that may change a run's numbers.

    Args:
        config: Nested plain values; sections named in `NOT_IDENTITY` are left out.
        data: Fingerprint of the dataset.
        weights: Hash of the backbone's weights.
        experiment: Name of the experiment folder.

    Returns:
        The start of a SHA-256 over the canonical JSON.
    """
    facts = {
        "experiment": experiment,
        "config": canonical(config),
        "data": data,
        "weights": weights,
        "protocol": PROTOCOL,
    }
    return _digest(facts)


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical configuration without its seeds: equal for the runs that a table averages over."""
    values = canonical(config)
    values.pop("seed", None)
    values.get("adapter", {}).pop("seed", None)
    return values


def group_name(config: Mapping[str, Any]) -> str:
    """A readable name shared by the seeds of one configuration."""
    names = [config["adapter"]["label"], config["dataset"]["name"], config["backbone"]["name"]]
    return "-".join([*names, _digest(without_seed(config))[:8]]).replace(" ", "_")


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
