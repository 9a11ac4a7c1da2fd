"""Parameter-efficient adapters: RandLoRA and its rivals, on any nn.Module."""

from __future__ import annotations

import dataclasses
from typing import Any

from randlora_core.adapters import dora, full_update, lora, nola, randlora, vera
from randlora_core.adapters.config import AdapterConfig, check_choice
from randlora_core.adapters.layer import Method
from randlora_core.errors import near

METHODS: dict[str, Method] = {
    "randlora": randlora.METHOD,
    "lora": lora.METHOD,
    "dora": dora.METHOD,
    "vera": vera.METHOD,
    "nola": nola.METHOD,
}

_ALL_METHODS = {**METHODS, "delta": full_update.METHOD}


def method_named(name: str) -> Method:
    """A method of `METHODS`, or "delta": frozen full updates, which nobody trains.

    Raises:
        ValueError: If there is none of this name.
    """
    check_choice("method", name, _ALL_METHODS)
    return _ALL_METHODS[name]


def make_config(method: str, **fields: Any) -> AdapterConfig:
    """The settings of a method by name.

    Args:
        method: A key of `METHODS`, or "delta".
        **fields: Fields of the method's config; `rank` is required.

    Raises:
        ValueError: If the method or a field is unknown, `rank` is missing, or a value is outside its range.
    """
    config = method_named(method).config
    known = tuple(field.name for field in dataclasses.fields(config))
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown field {name!r} of {method}{near(name, known)}; known: {', '.join(known)}")
    if "rank" not in fields:
        raise ValueError(f"{method} needs a rank; its fields: {', '.join(known)}")
    return config(**fields)
