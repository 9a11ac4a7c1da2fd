"""From a command line to plain nested values: the only place that talks to Hydra."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The repository's configuration tree; the package is installed in editable mode, so it lies beside it."""


def compose(
    name: str, overrides: Sequence[str], directory: Path = CONFIGS, base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Composes an entry of `configs/` with Hydra.

    The choices of groups are composed once for each combination, and plain values are set on a copy of the result, so
    that thousands of runs are planned in seconds. A setting that does not exist is set all the same: the configuration
    classes refuse it and know the accepted ones.

    Args:
        name: The entry without .yaml, e.g. "vision_language".
        overrides: Hydra's grammar, e.g. ["adapter=randlora", "adapter.rank=6"].
        directory: The configuration tree.
        base: Values that replace the entry's own, below the overrides.

    Returns:
        Plain nested values, interpolations resolved.

    Raises:
        ValueError: An override that does not parse, names no file of a group, or has several values; one line.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parsed = [_parse(text) for text in overrides]
    for text, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override():
            raise ValueError(f"{text}: several values; accepted: one, or all of them as a sweep with -m")
    known = groups_of(name, directory)
    groups = {  # of several choices of one group the last counts, as of several values of one setting
        override.key_or_group: text
        for text, override in zip(overrides, parsed, strict=True)
        if override.key_or_group in known
    }
    if base is not None and groups:
        chosen = next(iter(groups.values()))
        raise ValueError(f"{chosen}: the run has its own; accepted: settings within it, such as dataset=NAME")
    config = _composed(name, tuple(groups.values()), directory).copy()
    try:
        for key, value in (base or {}).items():
            OmegaConf.update(config, key, value, merge=key not in known)
        for override in parsed:
            if override.key_or_group not in known:
                _set(config, override)
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(_first_line(error)) from error


def expand(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The runs that overrides with several values stand for: `a=1,2 b=3` gives (a=1, b=3) and (a=2, b=3).

    Raises:
        ValueError: An override that does not parse; one line.
    """
    from hydra.errors import HydraException

    alternatives = []
    for text in overrides:
        override = _parse(text)
        if override.is_sweep_override():
            key = override.get_key_element()
            try:
                alternatives.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            except HydraException as error:
                raise ValueError(f"{text}: {_first_line(error)}; accepted: values with commas between") from error
        else:
            alternatives.append([text])
    return list(itertools.product(*alternatives))


def choices(group: str, directory: Path = CONFIGS) -> list[str]:
    """The names of a group, e.g. `choices("adapter")`."""
    return sorted(path.stem for path in (directory / group).glob("*.yaml"))


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if text.startswith("=") or "@" in text.partition("=")[0]:
        raise ValueError(f"{text!r} is no override; accepted: SETTING=VALUE or GROUP=NAME")
    if text.startswith("-"):
        raise ValueError(f"unknown option {text!r}; accepted: SETTING=VALUE, and --help, which lists them")
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        raise ValueError(f"{text!r} is no override ({_first_line(error)}); accepted: SETTING=VALUE") from error


@functools.lru_cache(maxsize=64)
def groups_of(name: str, directory: Path = CONFIGS) -> dict[str, str]:
    """The groups that an entry's list of defaults names, such as adapter, and which of their files it takes."""
    import yaml

    defaults = yaml.safe_load((directory / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: choice for entry in defaults if isinstance(entry, dict) for group, choice in entry.items()}


@functools.lru_cache(maxsize=256)
def _composed(name: str, groups: tuple[str, ...], directory: Path) -> Any:
    """Hydra's composition of an entry and the chosen files of its groups, interpolations unresolved."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    for text in groups:
        override = _parse(text)
        known = choices(override.key_or_group, directory)
        if override.is_add():
            raise ValueError(f"{text}: every run has one; accepted: {text.lstrip('+')}")
        if not override.is_delete() and override.value() not in known:
            key = override.key_or_group
            raise ValueError(f"unknown choice {key}={override.value()}; accepted: {', '.join(known)}")
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(directory), version_base="1.3"):
            config = hydra.compose(name, overrides=list(groups))
    except HydraException as error:
        raise ValueError(_first_line(error)) from error
    OmegaConf.set_struct(config, False)
    return config


def _set(config: Any, override: Any) -> None:
    """Sets, adds or removes a value; a mapping is merged into what was there, as Hydra does it."""
    from omegaconf import OmegaConf

    key = override.key_or_group
    if not override.is_delete():
        value = override.value()
        OmegaConf.update(config, key, value, merge=isinstance(value, Mapping))
        return
    parent, _, name = key.rpartition(".")
    section = OmegaConf.select(config, parent) if parent else config
    if section is None or name not in section:
        raise ValueError(f"~{key}: there is no such setting to remove")
    del section[name]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
