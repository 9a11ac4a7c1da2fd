"""From a command line to plain nested values: the only place that talks to Hydra."""

from __future__ import annotations

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

    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(directory), version_base="1.3"):
            config = hydra.compose(name, overrides=list(overrides))
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_line(error, name, directory)) from error


def _one_line(error: Exception, name: str, directory: Path) -> str:
    """Hydra's message without its layout; a key that is no setting is answered with the settings there are."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    dropped = ("full_key:", "object_type=", "To append to your config", "See https://", "Check that")
    message = " ".join(dict.fromkeys(line for line in lines if not line.startswith(dropped)))
    if "is not in struct" in message or message.startswith("Could not override"):
        settings = [path.stem for path in (directory / f"{name}.yaml",) if path.exists()]
        message += f"; the settings are listed in configs/{settings[0]}.yaml" if settings else ""
    return message


def choices(group: str, directory: Path = CONFIGS) -> list[str]:
    """The names of a group, e.g. `choices("adapter")`."""
    return sorted(path.stem for path in (directory / group).glob("*.yaml"))
