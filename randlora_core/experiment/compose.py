"""From a command line to plain nested values: the only place that talks to Hydra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The repository's configuration tree; the package is installed in editable mode, so it lies beside it."""


def compose(name: str, overrides: Sequence[str], directory: Path = CONFIGS) -> dict[str, Any]:
    """Composes an entry of `configs/` with Hydra.

    Args:
        name: The entry without .yaml, e.g. "vision_language".
        overrides: Hydra's grammar, e.g. ["adapter=randlora", "adapter.rank=6"].
        directory: The configuration tree.

    Returns:
        Plain nested values, interpolations resolved.

    Raises:
        ValueError: An override that does not parse, names no setting or no file of a group; one line.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        if override.startswith("-"):
            raise ValueError(f"unknown option {override!r}; accepted: SETTING=VALUE, and --help, which lists them")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(directory), version_base="1.3"):
        try:
            config = hydra.compose(name, overrides=list(overrides))
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException) as error:
            message = _one_line(error)
            unknown = re.search(r"Could not override '([^']+)'", message)
            if unknown is None:
                raise ValueError(message) from error
            chosen = [override for override in overrides if _is_choice(override, directory)]
            settings = OmegaConf.to_container(hydra.compose(name, overrides=chosen))
            raise ValueError(_refusal(settings, unknown[1])) from error


def choices(group: str, directory: Path = CONFIGS) -> list[str]:
    """The names of a group, e.g. `choices("adapter")`."""
    return sorted(path.stem for path in (directory / group).glob("*.yaml"))


def _one_line(error: Exception) -> str:
    """Hydra's message without its layout, its search path and its advice."""
    text = re.split(r"\n\s*(?:Config search path|To append|See https|full_key|object_type)", str(error))[0]
    return re.sub(r"^In '[^']*': ", "", " ".join(text.split()))


def _is_choice(override: str, directory: Path) -> bool:
    group, _, option = override.partition("=")
    return option in choices(group, directory)


def _refusal(settings: dict[str, Any], key: str) -> str:
    """What is wrong with a setting that Hydra would not override, and the settings beside it, as deep as they go."""
    known: Any = settings
    path: list[str] = []
    *parents, name = key.split(".")
    for part in parents:
        if not isinstance(known.get(part), dict):
            break
        known, path = known[part], [*path, part]
    if path == parents and isinstance(known.get(name), dict):
        return f"{key!r} holds entries; accepted: +{key}={{NAME: VALUE}}, which adds one"
    return f"unknown setting {key!r}; accepted{' in ' + '.'.join(path) if path else ''}: {', '.join(known)}"
