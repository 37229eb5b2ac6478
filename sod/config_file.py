"""Settings from a strict TOML file, and back into one.

An unknown key is an error with the nearest name; a key that another algorithm, optimiser or environment
reads is an error that says so; paths are resolved against the file's folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import tomli_w

from sod.config import (
    OPTIMIZERS,
    CheckpointSection,
    DataSection,
    EvaluationSection,
    RolloutSection,
    RunConfig,
    RunSection,
    StudentSection,
    TrainerSection,
)
from sod.config_algorithms import ALGORITHMS
from sod.config_engines import ENGINES
from sod.config_rewards import RewardSection
from sod.config_schema import PathOrName, Section, field_types, key_name, strip_limits
from sod.config_teachers import ROUTES, TEACHERS, ReferenceSection
from sod.envs.registry import environment_entry, environment_names, environment_options
from sod.errors import ConfigError

SECTIONS: Mapping[str, type[Section]] = {
    "run": RunSection,
    "student": StudentSection,
    "reference": ReferenceSection,
    "data": DataSection,
    "rollout": RolloutSection,
    "reward": RewardSection,
    "trainer": TrainerSection,
    "evaluation": EvaluationSection,
    "checkpoint": CheckpointSection,
}
NAMED_SECTIONS = ("teacher", "algorithm", "optimizer", "engine", "environment")


def load_config(path: Path, overrides: Sequence[str] = (), *, is_resolved: bool = False) -> RunConfig:
    """Read a TOML file.

    Args:
        path: The file; relative paths in it are relative to its folder.
        overrides: Settings in the form `section.key=value`, the value written as in TOML; they win over
            the file. Relative paths in them are relative to the file's folder too.
        is_resolved: Whether the file is that of a run, every default spelled out: an override of a name then
            drops the settings that belonged to the other.

    Returns:
        The checked settings.

    Raises:
        ConfigError: For a file that is missing or not TOML, or any setting that is not understood.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"load_config: no file {path}; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"load_config: {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"load_config: {path} is not valid TOML: {error}") from error
    for override in overrides:
        section, _, key = override.partition("=")[0].strip().partition(".")
        if is_resolved and key == "name":
            raw.pop(section, None)
        _apply_override(raw, override)
    return config_from_dict(raw, base=path.parent)


def config_from_dict(raw: Mapping[str, Any], *, base: Path) -> RunConfig:
    """Turn nested plain values into a checked `RunConfig`.

    Args:
        raw: Section name to key to value, as tomllib gives it.
        base: Folder that relative paths start from.

    Returns:
        The checked settings.

    Raises:
        ConfigError: For an unknown section or key, a wrong type, a value out of range, a missing setting.
    """
    known = (*SECTIONS, *NAMED_SECTIONS)
    for name, value in raw.items():
        if name not in known:
            raise ConfigError(f"unknown section [{name}]{nearest(name, known)}")
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} = {value!r}: [{name}] is a section, not a setting")
    for name in ("run", "trainer"):
        if name not in raw:
            raise ConfigError(f"section [{name}] is missing")
    built: dict[str, Any] = {
        name: section_from_dict(kind, raw[name], base=base) for name, kind in SECTIONS.items() if name in raw
    }
    if "teacher" in raw:
        built["teacher"] = _teacher(raw["teacher"], base)
    if "algorithm" in raw:
        built["algorithm"] = _choose("algorithm", raw["algorithm"], ALGORITHMS, base)
    if "optimizer" in raw:
        built["optimizer"] = _choose("optimizer", raw["optimizer"], OPTIMIZERS, base)
    if "engine" in raw:
        built["engine"] = _choose("engine", raw["engine"], ENGINES, base)
    if "environment" in raw:
        built["environment"] = _environment(raw["environment"], base)
    return RunConfig(**built)


def section_from_dict(kind: type[Section], raw: Mapping[str, Any], *, base: Path, hint: str = "") -> Section:
    """Turn the plain values of one section into its dataclass.

    Args:
        kind: The section's dataclass.
        raw: Key to value.
        base: Folder that relative paths start from.
        hint: Added to the message about an unknown key.

    Returns:
        The section, checked.

    Raises:
        ConfigError: For an unknown or missing key, a wrong type or a value out of range.
    """
    types = field_types(kind)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in types:
            raise ConfigError(f"unknown key {key_name(kind.section, key)}{hint or nearest(key, types)}")
        values[key] = _convert(value, types[key], base)
    for item in fields(kind):
        is_required = item.default is MISSING and item.default_factory is MISSING
        if is_required and item.name not in values:
            raise ConfigError(f"{key_name(kind.section, item.name)} is missing")
    return kind(**values)


def config_to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Turn settings into nested plain values that TOML can hold; None is left out."""
    result: dict[str, dict[str, Any]] = {}
    for item in fields(config):
        section = getattr(config, item.name)
        if section is not None:
            result[item.name] = _section_to_dict(section)
    return result


def dump_config(config: RunConfig) -> str:
    """Write settings as TOML, every default spelled out and every path absolute."""
    return tomli_w.dumps(config_to_dict(config))


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Offer the nearest known name, or all of them where none is near."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"


def _choose(section: str, raw: Mapping[str, Any], kinds: Mapping[str, type[Section]], base: Path) -> Section:
    name = raw.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"[{section}] name is missing; known: {', '.join(kinds)}")
    if name not in kinds:
        raise ConfigError(f"[{section}] name = {name!r}: unknown{nearest(name, kinds)}")
    own = field_types(kinds[name])
    for key in raw:
        owners = [other for other, kind in kinds.items() if key in field_types(kind)]
        if key not in own and owners:
            raise ConfigError(_belongs(section, key, owners, name))
    return section_from_dict(kinds[name], raw, base=base)


def _teacher(raw: Mapping[str, Any], base: Path) -> Section:
    values = {"name": "local", **raw}
    routes = values.get("routes")
    if values["name"] == "routed" and isinstance(routes, Mapping):
        values["routes"] = {name: _route(name, route, base) for name, route in routes.items()}
    return _choose("teacher", values, TEACHERS, base)


def _route(name: str, raw: Any, base: Path) -> Section:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"[teacher.routes] {name} = {raw!r}: [teacher.routes.{name}] is a section")
    try:
        return _choose("teacher", {"name": "local", **raw}, ROUTES, base)
    except ConfigError as error:
        raise ConfigError(f"[teacher.routes.{name}]: {error}") from error


def _environment(raw: Mapping[str, Any], base: Path) -> Section:
    name = raw.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"[environment] name is missing; known: {', '.join(environment_names())}")
    kind = environment_entry(name).options
    own = field_types(kind)
    for key in raw:
        if key not in own:
            owners = [
                other for other, options in environment_options().items() if key in field_types(options)
            ]
            if owners:
                raise ConfigError(_belongs("environment", key, owners, name))
    return section_from_dict(kind, raw, base=base)


def _belongs(section: str, key: str, owners: Sequence[str], name: str) -> str:
    listed = " and ".join(repr(owner) for owner in owners)
    return f"[{section}] {key} belongs to {section} {listed}, but [{section}] name = {name!r}; remove it"


def _apply_override(raw: dict[str, Any], override: str) -> None:
    target, separator, text = override.partition("=")
    section, dot, key = target.strip().partition(".")
    if not separator or not dot or not section or not key or "." in key:
        raise ConfigError(f"--set {override!r}: wanted section.key=value, for example trainer.rounds=8")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        raise ConfigError(
            f"--set {override!r}: {text.strip()!r} is not a TOML value; a string needs quotes, "
            f"for example --set '{target.strip()}=\"text\"'"
        ) from None
    entry = raw.setdefault(section, {})
    if not isinstance(entry, dict):
        raise ConfigError(f"--set {override!r}: {section!r} is not a section")
    entry[key] = value


def _convert(value: Any, annotation: Any, base: Path) -> Any:
    kind, limits = strip_limits(annotation)
    if get_origin(kind) in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return _convert(value, options[0], base) if len(options) == 1 else value
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and kind is Path:
        return (base / Path(value).expanduser()).resolve()
    if isinstance(value, str) and any(isinstance(limit, PathOrName) for limit in limits):
        return _path_or_name(value, base)
    if isinstance(value, int) and not isinstance(value, bool) and strip_limits(kind)[0] is float:
        return float(value)
    return value


def _path_or_name(value: str, base: Path) -> str:
    folder = base / Path(value).expanduser()
    is_spelled_as_path = value.startswith((".", "/", "~"))
    return str(folder.resolve()) if is_spelled_as_path or folder.exists() else value


def _section_to_dict(section: Section) -> dict[str, Any]:
    values = {entry.name: getattr(section, entry.name) for entry in fields(section)}
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return _section_to_dict(value) if isinstance(value, Section) else value
