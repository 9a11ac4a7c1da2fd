"""The settings that all methods have in common, their validation, and the settings of one layer."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from randlora_core.errors import near

MAX_SEED = 2**63

IMPORTED = "imported"
"""Value of a config's `basis` for random matrices that came from a file, and that no seed gives."""


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of every method. Field names equal the keys of `adapter_config.json`.

    Args:
        rank: Rank of the method's factors or bases; at least 1.
        dropout: Probability of zeroing an element of the adapter's input during training, in [0, 1).
        rank_pattern: Layer pattern -> rank, for layers that differ from `rank`. A pattern is a suffix of the layer's
            name at dots, or a regular expression on the full name; the first one that matches counts.

    Raises:
        ValueError: If a value is outside its range.
    """

    method: ClassVar[str]
    neutral: ClassVar[Mapping[str, Any]] = {}
    """Settings of later versions -> the value at which they change nothing, and which `settings` leaves out: files and
    records stay those of earlier versions."""

    rank: int
    _: KW_ONLY
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):  # numpy's numbers are none of JSON's
            _set(self, setting.name, _without_numpy(getattr(self, setting.name)))
        _set(self, "rank", positive_integer("rank", self.rank))
        if not is_number(self.dropout) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be a number in [0, 1), got {self.dropout!r}")
        ranks = _pattern_mapping("rank_pattern", self.rank_pattern)
        _set(self, "rank_pattern", {key: positive_integer(f"rank_pattern[{key!r}]", r) for key, r in ranks.items()})

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """The layer patterns this config holds: field name -> patterns."""
        return {"rank_pattern": tuple(self.rank_pattern)}

    def for_layer(self, name: str) -> Self:
        """The settings of one layer: patterns applied and emptied, defaults that depend on the rank filled in."""
        return dataclasses.replace(self, rank=_lookup(self.rank_pattern, name, self.rank), rank_pattern={})

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the method's name under "method"."""
        return {"method": self.method, **self.settings()}

    def settings(self) -> dict[str, Any]:
        """The fields as plain JSON values; without those at their value of `neutral`."""
        fields = dataclasses.asdict(self).items()
        return {key: value for key, value in fields if key not in self.neutral or value != self.neutral[key]}


@dataclass(frozen=True)
class ScaledConfig(AdapterConfig):
    """Settings of a method whose update is multiplied by alpha / rank.

    Args:
        rank: As in `AdapterConfig`.
        alpha: Numerator of the scale, finite and not zero; None stands for `default_alpha_per_rank` times the rank.
        alpha_pattern: Layer pattern -> alpha, as `rank_pattern`.
    """

    default_alpha_per_rank: ClassVar[float] = 2.0

    _: KW_ONLY
    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            check_nonzero("alpha", self.alpha)
        for key, alpha in _pattern_mapping("alpha_pattern", self.alpha_pattern).items():
            check_nonzero(f"alpha_pattern[{key!r}]", alpha)
        _set(self, "alpha_pattern", dict(self.alpha_pattern))

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """As in `AdapterConfig`."""
        return {**super().patterns(), "alpha_pattern": tuple(self.alpha_pattern)}

    def for_layer(self, name: str) -> Self:
        """As in `AdapterConfig`; `alpha` of the result is a number."""
        layer = super().for_layer(name)
        alpha = _lookup(self.alpha_pattern, name, self.alpha)
        if alpha is None:
            alpha = self.default_alpha_per_rank * layer.rank
        return dataclasses.replace(layer, alpha=alpha, alpha_pattern={})

    @property
    def scale(self) -> float:
        """The factor alpha / rank."""
        return self.alpha_or_default / self.rank

    @property
    def alpha_or_default(self) -> float:
        """Alpha, or what stands for it where it is None."""
        return self.default_alpha_per_rank * self.rank if self.alpha is None else self.alpha


def positive_integer(name: str, value: object) -> int:
    """`value` as int.

    Raises:
        ValueError: If it is not an integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def check_seed(seed: object) -> None:
    """Refuse what the generator of the bases cannot take.

    Raises:
        ValueError: If `seed` is not an integer in [0, 2**63).
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < MAX_SEED:
        raise ValueError(f"seed must be an integer in [0, 2**63), got {seed!r}")


def is_imported(config: AdapterConfig) -> bool:
    """Whether the settings ask for random matrices that only a file can give."""
    return getattr(config, "basis", None) == IMPORTED


def check_unseeded(config: AdapterConfig) -> None:
    """Refuse a seed beside imported matrices.

    Raises:
        ValueError: If it is not 0.
    """
    if is_imported(config) and config.seed != 0:
        raise ValueError(f"seed={config.seed!r} has no effect with basis={IMPORTED!r}")


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Refuse a value that a table does not hold.

    Raises:
        ValueError: If `value` is none of `known`; the message lists them.
    """
    known = tuple(known)
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}{near(value, known)}; known: {', '.join(known)}")


def matches_suffix(name: str, suffix: str) -> bool:
    """Whether `suffix` equals `name` or its end after a dot."""
    return name == suffix or name.endswith("." + suffix)


def matches_regex(name: str, expression: str) -> bool:
    """Whether the whole of `name` matches.

    Raises:
        ValueError: If `expression` is not a regular expression.
    """
    try:
        return re.fullmatch(expression, name) is not None
    except re.error as error:
        raise ValueError(f"{expression!r} is not a regular expression: {error}") from None


def exactly(names: Iterable[str]) -> str:
    """A regular expression that matches these names and no others."""
    return "|".join(re.escape(name) for name in names)


def matches_pattern(name: str, pattern: str) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern` applies to the layer `name`: as suffix or as expression."""
    return matches_suffix(name, pattern) or matches_regex(name, pattern)


def _lookup(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if matches_pattern(name, pattern)), default)


def _pattern_mapping(field_name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value):
        raise ValueError(f"{field_name} must map layer patterns to values, got {value!r}")
    return dict(value)


def check_nonzero(name: str, value: object) -> None:
    """Refuse a factor that is no number or would switch a method off.

    Raises:
        ValueError: If `value` is not a finite number other than 0.
    """
    if not is_number(value) or not math.isfinite(value) or value == 0:
        raise ValueError(f"{name} must be a finite number other than 0, got {value!r}")


def is_number(value: object) -> bool:
    """Whether `value` is a real number, and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _without_numpy(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_numpy(entry) for key, entry in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _set(config: AdapterConfig, name: str, value: object) -> None:
    object.__setattr__(config, name, value)
