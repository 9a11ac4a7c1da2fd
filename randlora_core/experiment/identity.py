"""The identity of a run: digests of everything that changes its numbers, and of nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PROTOCOL = 2
"""Raised by any change of the code that changes what a configuration trains or measures, beyond the rounding of its
arithmetic: old records count no more."""


@dataclass(frozen=True)
class Identity:
    """Digests by which runs are found again, each of sixteen hexadecimal digits.

    Attributes:
        settings: Of the settings alone; finds a committed record where neither data nor weights are here.
        group: Of the settings without their seeds; shared by the runs that a table averages over.
        tuning: Of the group's settings without learning rate and number format: what a learning rate is tuned for.
        data: Fingerprint of the data.
        weights: Identity of the pre-trained weights.
    """

    settings: str
    group: str
    tuning: str
    data: str
    weights: str

    def recorded(self) -> dict[str, str]:
        """As the record carries it."""
        return asdict(self)


def identify_settings(values: Mapping[str, Any], experiment: str) -> dict[str, str]:
    """Digests a run's settings three ways; the keys of the result are the fields `settings`, `group`, `tuning`.

    Args:
        values: What `RunConfig.identity` gives.
        experiment: The experiment's name.
    """
    facts = {"experiment": experiment, "protocol": PROTOCOL, "settings": copy.deepcopy(dict(values))}
    digests = {"settings": _digest(facts)}
    facts["settings"].pop("seed", None)
    facts["settings"].get("adapter", {}).pop("seed", None)
    digests["group"] = _digest(facts)
    for key in ("learning_rate", "precision"):
        facts["settings"].get("training", {}).pop(key, None)
    return {**digests, "tuning": _digest(facts)}


def run_id(identity: Identity) -> str:
    """Sixteen hexadecimal digits that change with anything that may change a run's numbers."""
    return _digest({"settings": identity.settings, "data": identity.data, "weights": identity.weights})


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
