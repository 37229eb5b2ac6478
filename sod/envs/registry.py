"""Environments by the name that a TOML file gives them.

An entry couples the options that a `[environment]` section may set with the function that builds the
environment from them. `name = "my_package.my_module:ENTRY"` uses an entry of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sod.config_environments import EnvironmentSection
from sod.envs.base import EnvironmentFactory
from sod.errors import ConfigError
from sod.parsing import CallFormat
from sod.types import Task

if TYPE_CHECKING:
    from sod.tools import Tool


@dataclass(frozen=True, kw_only=True)
class BuiltEnvironment:
    """An environment that is ready for rollouts.

    Attributes:
        factory: Makes the environment of one trajectory from its task.
        tools: What the chat template tells the model about.
        stop_tokens: Token texts that end an assistant turn besides the template's own.
        call_format: How the student writes calls here; None leaves it to template and settings.
        close: Gives back what the environment holds.
    """

    factory: EnvironmentFactory
    tools: Sequence[Tool] = ()
    stop_tokens: tuple[str, ...] = ()
    call_format: CallFormat | None = None
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """Which tasks are to be made.

    Attributes:
        num_tasks: How many, at least 1.
        seed: Seed of the set of tasks.
        split: Name of a split that the environment knows.
        first: Index of the first task within the set, from 0.
    """

    num_tasks: int
    seed: int = 0
    split: str = "train"
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class EnvironmentEntry:
    """What the registry knows of one environment.

    Attributes:
        options: Dataclass of the `[environment]` section.
        build: Makes the environment from such a section.
        make_tasks: Makes tasks for such a section; None where tasks come from files only.
    """

    options: type[EnvironmentSection]
    build: Callable[[Any], BuiltEnvironment]
    make_tasks: Callable[[Any, TaskRequest], list[Task]] | None = None


BUILT_IN: Mapping[str, str] = {
    "tools": "sod.envs.tool_entry:ENTRY",
    "ledger": "sod.envs.ledger_env:ENTRY",
    "textworld": "sod.envs.textworld_env:ENTRY",
    "search_qa": "sod.envs.search_qa:ENTRY",
    "web_store": "sod.envs.web_store:ENTRY",
    "alfworld": "sod.envs.alfworld_env:ENTRY",
    "trl": "sod.envs.trl_env:ENTRY",
    "gymnasium": "sod.envs.gym_env:ENTRY",
}


def environment_names() -> tuple[str, ...]:
    """Names that a TOML file may use without a module path."""
    return tuple(BUILT_IN)


def environment_options() -> dict[str, type[EnvironmentSection]]:
    """Options of every environment known by name."""
    return {name: environment_entry(name).options for name in BUILT_IN}


def environment_entry(name: str) -> EnvironmentEntry:
    """Look an environment up.

    Args:
        name: A name of `environment_names()`, or "module:ATTRIBUTE".

    Returns:
        Its entry.

    Raises:
        ConfigError: If there is none of that name, or the module does not hold one.
    """
    location = BUILT_IN.get(name, name)
    module_name, separator, attribute = location.partition(":")
    if not separator:
        close = get_close_matches(name, BUILT_IN, n=1, cutoff=0.6)
        advice = (
            f"did you mean {close[0]!r}?" if close else f"known: {', '.join(BUILT_IN)}, or 'module:ENTRY'"
        )
        raise ConfigError(f"[environment] name = {name!r}: unknown; {advice}")
    try:
        entry = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"[environment] name = {name!r}: cannot be imported: {error}") from error
    if not isinstance(entry, EnvironmentEntry):
        raise ConfigError(
            f"[environment] name = {name!r}: wanted an EnvironmentEntry, got {type(entry).__name__}"
        )
    return entry


def build_environment(section: EnvironmentSection) -> BuiltEnvironment:
    """Build the environment that a section names."""
    return environment_entry(section.name).build(section)
