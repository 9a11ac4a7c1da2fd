"""Parts of a configuration: strict and frozen values, with one line for each thing that is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FREE = {"identity": False}
"""Metadata of a field that does not change a run's numbers, and so is no part of its identity."""

Names = Annotated[tuple[str, ...], Field(strict=False)]
Positive = Annotated[int, Field(gt=0)]
PositiveNumber = Annotated[float, Field(gt=0)]


def free(**options: Any) -> Any:
    """A field that does not change a run's numbers; the arguments are those of pydantic's `Field`."""
    return Field(json_schema_extra=FREE, **options)


def neutral(value: Any) -> Any:
    """A field that changes a run's numbers unless it has `value`, its default; at `value` the identity leaves it out.

    A setting that is added later is such a field, so that earlier runs, made as with `value`, keep their identity.
    """
    return Field(default=value, json_schema_extra={"neutral": value})


class Section(BaseModel):
    """A part of a configuration: frozen, with no unknown keys, nothing converted and only finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OpenSection(Section):
    """A section whose further keys belong to whatever it names."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that no field names."""
        return dict(self.model_extra or {})


C = TypeVar("C", bound=Section)


def validated(config_class: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Builds a configuration from plain nested values.

    Args:
        config_class: The class.
        values: The values.
        where: A file's name, which every line of an error then starts with.

    Raises:
        ValueError: One line for each value that is missing, unknown or not accepted.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise ValueError("\n".join(prefix + line for line in _lines(error, config_class))) from None


def _lines(error: ValidationError, config_class: type[BaseModel]) -> list[str]:
    """A line for each wrong value; what the alternatives of a union accept is told in one line."""
    accepted: dict[str, dict[str, None]] = {}
    for problem in error.errors():
        wrong, _, alternative = _describe(problem, config_class).partition("; accepted: ")
        accepted.setdefault(wrong, {})[alternative] = None
    return [wrong + (f"; accepted: {' or '.join(found)}" if any(found) else "") for wrong, found in accepted.items()]


def _describe(problem: Any, config_class: type[BaseModel]) -> str:
    """One line that names the value and what is accepted."""
    path = ".".join(str(part) for part in problem["loc"] if not _is_union_member(part))
    kind, message = problem["type"], problem["msg"]
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return text if not path or "=" in text or "'" in text else f"{path}: {text}"
    if kind == "missing":
        return f"setting {path!r} is missing"
    if kind == "extra_forbidden":
        return _unknown(path, _fields_at(config_class, problem["loc"][:-1]))
    quoted = f", such as {path}=\"'{problem['input']}'\"" if kind == "string_type" else ""
    return f"{path}={problem['input']!r}; accepted: {message.removeprefix('Input should be ')}{quoted}"


def _unknown(path: str, known: Sequence[str]) -> str:
    parent, _, name = path.rpartition(".")
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" (near: {near[0]})" if near else ""
    return f"unknown setting {path!r}{guess}; accepted{f' in {parent}' if parent else ''}: {', '.join(known)}"


def _is_union_member(part: Any) -> bool:
    """Whether a part of an error's path names an alternative of a union, such as "tuple[str, ...]", not a key."""
    return isinstance(part, str) and (part in ("str", "int", "float", "constrained-int") or "[" in part)


def _fields_at(config_class: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """The settings that a section accepts, found by following `path` down from `config_class`."""
    for part in path:
        found = config_class.model_fields.get(part) if isinstance(part, str) else None
        if found is not None and isinstance(found.annotation, type) and issubclass(found.annotation, BaseModel):
            config_class = found.annotation
    return list(config_class.model_fields)


def identity_values(section: BaseModel) -> dict[str, Any]:
    """A section's values as plain ones, without the fields that are marked as free."""
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, extra = getattr(section, name), field.json_schema_extra or {}
        if extra == FREE or extra == {"neutral": value}:
            continue
        values[name] = identity_values(value) if isinstance(value, BaseModel) else _plain(value)
    values.update({name: _plain(value) for name, value in (section.model_extra or {}).items()})
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
