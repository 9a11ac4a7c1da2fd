"""One clear error where a part of the library needs packages that only one of its extras installs.

`pip install randlora` installs torch, numpy and safetensors; the extras are listed in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed that belongs to an extra; the message has pip's command."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Within the context (or the decorated function) a missing package is reported with the extra that installs it.

    Args:
        extra: Name of the extra, e.g. "experiments".

    Raises:
        MissingExtraError: If an import fails because a package of others is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "randlora_core") or isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError(
            f'the package {package} is not installed: pip install "randlora[{extra}]"', name=error.name
        ) from error
