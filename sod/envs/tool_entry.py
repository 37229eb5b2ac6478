"""The "tools" environment as a TOML file names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Annotated, Any, Literal

from sod.config import EnvironmentSection
from sod.config_schema import Above
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.envs.tool_env import ToolEnvironment
from sod.errors import ConfigError
from sod.rewards import Reward, get_reward
from sod.sandbox import LocalSandbox
from sod.tools import Tool, python_tool, tool
from sod.types import Task


@dataclass(frozen=True, kw_only=True)
class ToolsSection(EnvironmentSection):
    """Calls are run, results go back; the first turn without a call is the answer."""

    name: str = "tools"
    """Name of the environment."""
    tools: tuple[str, ...] = ("python",)
    """Tools on offer: "python", or "module:function" for a function of your own."""
    reward: Literal["math", "number", "exact"] = "math"
    """How an answer is compared to the ground truth."""
    success_threshold: float = 1.0
    """Reward from which on a trajectory counts as solved."""
    max_errors_in_a_row: Annotated[int, Above(0)] | None = None
    """Turns in a row with an error before a trajectory is ended; None for no limit."""
    python_timeout_s: Annotated[float, Above(0)] = 10.0
    """Wall-clock limit of one run of the "python" tool, in seconds."""


def build(section: ToolsSection) -> BuiltEnvironment:
    """Build the environment; a sandbox is started only where the Python tool is on offer."""
    with ExitStack() as stack:
        built = tool_environment(
            [_tool(name, section, stack) for name in section.tools],
            section.reward,
            success_threshold=section.success_threshold,
            max_errors_in_a_row=section.max_errors_in_a_row,
        )
        return replace(built, close=stack.pop_all().close)


def tool_environment(
    tools: Sequence[Tool | Callable[..., Any]],
    reward: Reward | str,
    *,
    success_threshold: float = 1.0,
    max_errors_in_a_row: int | None = None,
) -> BuiltEnvironment:
    """Make the standard environment from tools and a reward.

    Args:
        tools: Tools, or plain functions with type hints and a docstring.
        reward: Name of a reward, or a function (task, text) -> float.
        success_threshold: Reward from which on a trajectory counts as solved.
        max_errors_in_a_row: Turns in a row with an error before a trajectory is ended; None for no limit.

    Returns:
        The environment.
    """
    made = tuple(one if isinstance(one, Tool) else tool(one) for one in tools)
    score = get_reward(reward) if isinstance(reward, str) else reward

    def factory(task: Task) -> ToolEnvironment:
        return ToolEnvironment(
            task, made, score, success_threshold=success_threshold, max_errors_in_a_row=max_errors_in_a_row
        )

    return BuiltEnvironment(factory=factory, tools=made)


def _tool(name: str, section: ToolsSection, stack: ExitStack) -> Tool:
    if name == "python":
        sandbox = stack.enter_context(LocalSandbox())
        return python_tool(sandbox, timeout_s=section.python_timeout_s)
    module_name, separator, attribute = name.partition(":")
    if not separator:
        raise ConfigError(f"[environment] tools: {name!r} is unknown; wanted 'python' or 'module:function'")
    try:
        function: Callable[..., object] = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"[environment] tools: {name!r} cannot be imported: {error}") from error
    return tool(function)


ENTRY = EnvironmentEntry(options=ToolsSection, build=build)
