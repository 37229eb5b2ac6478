"""What a section of settings is: a frozen dataclass whose types and ranges are checked at birth.

A field says its limits in its annotation, `Annotated[float, Above(0)]`; the same check serves a section
read from a TOML file and one made in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from sod.errors import ConfigError


@dataclass(frozen=True)
class Above:
    """The value must be greater than `limit`."""

    limit: float


@dataclass(frozen=True)
class AtLeast:
    """The value must not be smaller than `limit`."""

    limit: float


@dataclass(frozen=True)
class AtMost:
    """The value must not be greater than `limit`."""

    limit: float


@dataclass(frozen=True)
class PathOrName:
    """The string is a folder (resolved against the TOML file) or else a name on the hub."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of every group of settings; `section` is its name in the TOML file."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the type and the range of every field.

        Raises:
            ConfigError: Naming section, key, what was got and what is wanted.
        """
        hints = field_types(type(self))
        for item in fields(self):
            check_value(key_name(self.section, item.name), getattr(self, item.name), hints[item.name])


def key_name(section: str, key: str) -> str:
    """Write a setting as people see it in the file: `[rollout] temperature`."""
    return f"[{section}] {key}" if section else key


def field_types(section: type[Section]) -> Mapping[str, Any]:
    """Give the annotation of every field, limits included."""
    hints = get_type_hints(section, include_extras=True)
    return {item.name: hints[item.name] for item in fields(section)}


def strip_limits(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split `Annotated[X, limits...]` into X and its limits."""
    if get_origin(annotation) is Annotated:
        base, *limits = get_args(annotation)
        return base, tuple(limits)
    return annotation, ()


def is_optional(annotation: Any) -> bool:
    """Say whether None is allowed."""
    base, _ = strip_limits(annotation)
    return get_origin(base) in (Union, UnionType) and type(None) in get_args(base)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Check one value against its annotation.

    Args:
        name: The setting as people see it.
        value: What was given.
        annotation: The field's type, possibly `Annotated` with limits.

    Raises:
        ConfigError: For a wrong type or a value outside its limits.
    """
    base, limits = strip_limits(annotation)
    if get_origin(base) in (Union, UnionType):
        if value is None and type(None) in get_args(base):
            return
        options = [option for option in get_args(base) if option is not type(None)]
        if len(options) == 1:
            check_value(name, value, Annotated[options[0], *limits] if limits else options[0])
        elif not isinstance(value, tuple(options)):
            wanted = " or ".join(option.__name__ for option in options)
            raise ConfigError(f"{name} = {value!r}: wanted {wanted}, got {type(value).__name__}")
        return
    if get_origin(base) is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name} = {value!r}: wanted a list, got {type(value).__name__}")
        for item in value:
            check_value(f"{name} (an entry of it)", item, get_args(base)[0])
        return
    if get_origin(base) is Mapping:
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(f"{name} = {value!r}: wanted a table with an entry per name")
        return
    _check_scalar(name, value, base)
    _check_limits(name, value, limits)


def _check_scalar(name: str, value: Any, base: Any) -> None:
    if get_origin(base) is Literal:
        if value not in get_args(base):
            wanted = ", ".join(repr(choice) for choice in get_args(base))
            raise ConfigError(f"{name} = {value!r}: wanted one of {wanted}")
        return
    accepted = (int, float) if base is float else (base,)
    is_stray_bool = isinstance(value, bool) and base is not bool
    if is_stray_bool or not isinstance(value, accepted):
        words = {Path: "a path (a string)", str: "a string", int: "an integer", float: "a number"}
        wanted = words.get(base, base.__name__)
        raise ConfigError(f"{name} = {value!r}: wanted {wanted}, got {type(value).__name__}")


def _check_limits(name: str, value: Any, limits: tuple[Any, ...]) -> None:
    for limit in limits:
        if isinstance(limit, Above) and not value > limit.limit:
            raise ConfigError(f"{name} = {value!r}: wanted a value above {limit.limit:g}")
        if isinstance(limit, AtLeast) and not value >= limit.limit:
            raise ConfigError(f"{name} = {value!r}: wanted at least {limit.limit:g}")
        if isinstance(limit, AtMost) and not value <= limit.limit:
            raise ConfigError(f"{name} = {value!r}: wanted at most {limit.limit:g}")
