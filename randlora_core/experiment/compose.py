"""From a command line to plain nested values: the only place that talks to Hydra."""

from __future__ import annotations

import copy
import fnmatch
import functools
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The repository's configuration tree; the package is installed in editable mode, so it lies beside it."""

RECIPE = "recipe"
"""The group whose files hold rules instead of values; `configs/recipe/paper.yaml` says how they are read."""


def compose(
    name: str, overrides: Sequence[str], directory: Path = CONFIGS, base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Composes an entry of `configs/` with Hydra.

    The choices of groups are composed once for each combination, and what thousands of runs of a comparison differ in,
    such as the data set, is set on a copy of the resolved values, so that they are planned in seconds. A setting that
    does not exist is set all the same: the configuration classes refuse it and know the accepted ones.

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
    of_groups = tuple(groups.values())
    settings = tuple(text for text in overrides if _parse(text).key_or_group not in known)
    if base is not None:
        return _resolve(name, of_groups, settings, directory, base)
    apart = _set_apart(settings, _single_values(name, of_groups, directory))
    others = tuple(text for text in settings if _parse(text).key_or_group not in apart)
    return copy.deepcopy(_resolved_once(name, of_groups, others, directory)) | apart


def _resolve(
    name: str, groups: tuple[str, ...], settings: tuple[str, ...], directory: Path, base: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A composition with further settings, as plain values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = _with_recipe(name, groups, directory).copy()
    try:
        for key, value in (base or {}).items():
            OmegaConf.update(config, key, value, merge=key not in groups_of(name, directory))
        for text in settings:
            _set(config, _parse(text))
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(_first_line(error)) from error


@functools.lru_cache(maxsize=1024)
def _resolved_once(name: str, groups: tuple[str, ...], settings: tuple[str, ...], directory: Path) -> dict[str, Any]:
    """What `_resolve` gives, for callers that copy it."""
    return _resolve(name, groups, settings, directory, None)


def _set_apart(settings: Sequence[str], single: Collection[str]) -> dict[str, Any]:
    """Those of the settings whose keys are in `single` and that give nothing but a plain value; the last one counts."""
    found: dict[str, list[Any]] = {}
    for override in map(_parse, settings):
        value = {} if override.is_delete() else override.value()
        found.setdefault(override.key_or_group.partition(".")[0], []).append((override.key_or_group, value))
    return {
        key: given[-1][1]
        for key, given in found.items()
        if key in single and all(name == key and _is_plain(value) for name, value in given)
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float)) or (isinstance(value, str) and "$" not in value)


@functools.lru_cache(maxsize=256)
def _single_values(name: str, groups: tuple[str, ...], directory: Path) -> frozenset[str]:
    """The settings at the top of a composition that hold one value and that no interpolation names."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(_with_recipe(name, groups, directory), resolve=False)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"\$\{[^}]*\}", str(config)))))
    single = {key for key, value in config.items() if not isinstance(value, (dict, list)) and value != "???"}
    return frozenset(single - named)


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
        _check_choice(text, directory)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(directory), version_base="1.3"):
            config = hydra.compose(name, overrides=list(groups))
    except HydraException as error:
        raise ValueError(_first_line(error)) from error
    OmegaConf.set_struct(config, False)
    return config


def _check_choice(text: str, directory: Path) -> None:
    """Refuses an override that chooses no file of its group."""
    override = _parse(text)
    known = choices(override.key_or_group, directory)
    if override.is_add():
        raise ValueError(f"{text}: every run has one; accepted: {text.lstrip('+')}")
    if not override.is_delete() and override.value() not in known:
        key = override.key_or_group
        raise ValueError(f"unknown choice {key}={override.value()}; accepted: {', '.join(known)}")


@functools.lru_cache(maxsize=256)
def _with_recipe(name: str, groups: tuple[str, ...], directory: Path) -> Any:
    """The composition with the overrides that its recipe's rules add; Hydra would take long to read the rules."""
    chosen = {"experiment": name, **groups_of(name, directory)}
    chosen |= {override.key_or_group: override.value() for override in map(_parse, groups) if not override.is_delete()}
    others = tuple(text for text in groups if _parse(text).key_or_group != RECIPE)
    config = _composed(name, others, directory).copy()
    if config.pop(RECIPE, None) is None:
        return config
    for text in set(groups) - set(others):
        _check_choice(text, directory)
    for text in _recipe_overrides(_rules(directory / RECIPE / f"{chosen[RECIPE]}.yaml"), chosen):
        _set(config, _parse(text))
    return config


@functools.lru_cache(maxsize=16)
def _rules(path: Path) -> list[dict[str, Any]]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]


def _recipe_overrides(rules: Sequence[Mapping[str, Any]], chosen: Mapping[str, str]) -> list[str]:
    """The overrides of the rules that fit an experiment and the files chosen in its groups.

    Raises:
        ValueError: No fitting rule names one of the choices, though rules name others of its group.
    """

    def names(rule: Mapping[str, Any], key: str) -> list[str]:
        values = rule["at"].get(key, [])
        return [values] if isinstance(values, str) else list(values)

    def fits(rule: Mapping[str, Any], but: str | None = None) -> bool:
        return all(
            key == but or any(fnmatch.fnmatch(chosen[key], pattern) for pattern in names(rule, key))
            for key in rule["at"]
        )

    for key in dict.fromkeys(key for rule in rules for key in rule["at"]):
        if not any(key in rule["at"] and fits(rule) for rule in rules):
            accepted = dict.fromkeys(name for rule in rules if fits(rule, but=key) for name in names(rule, key))
            known = ", ".join(accepted)
            raise ValueError(f"{RECIPE}={chosen[RECIPE]} has no settings for {key}={chosen[key]}; accepted: {known}")
    return [text for rule in rules if fits(rule) for text in rule["overrides"]]


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
