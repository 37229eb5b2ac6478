"""The "tools" environment as a TOML file names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Annotated, Any, Literal

from sod.config_environments import EnvironmentSection
from sod.config_schema import Above
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.envs.tool_env import ToolEnvironment
from sod.errors import ConfigError
from sod.rewards import SANDBOX_REWARDS, Reward, get_reward
from sod.sandbox import LocalSandbox, Sandbox, SandboxFusionClient
from sod.tools import Tool, python_session_tool, python_tool, tool
from sod.types import Task


@dataclass(frozen=True, kw_only=True)
class ToolsSection(EnvironmentSection):
    """Calls are run, results go back; the first turn without a call is the answer."""

    name: str = "tools"
    """Name of the environment."""
    tools: tuple[str, ...] = ("python",)
    """Tools on offer: "python", or "module:function" for a function of your own."""
    reward: Literal[
        "math", "number", "exact", "boxed", "letter", "qa_exact", "f1", "code", "code_all", "by_task"
    ] = "math"
    """How an answer is compared to the ground truth; "code" and "code_all" run its tests in the sandbox,
    "by_task" does what each task's `grader` says."""
    success_threshold: float = 1.0
    """Reward from which on a trajectory counts as solved."""
    max_errors_in_a_row: Annotated[int, Above(0)] | None = None
    """Turns in a row with an error before a trajectory is ended; None for no limit."""
    python_timeout_s: Annotated[float, Above(0)] = 10.0
    """Wall-clock limit of one run of the "python" tool, and of one test of a program, in seconds."""
    python_state: Literal["fresh", "kept"] = "fresh"
    """"kept" keeps variables and files of the "python" tool from call to call of a trajectory."""
    sandbox: Literal["local", "fusion"] = "local"
    """Where Python runs: on this machine, or on a SandboxFusion server."""
    sandbox_url: str | None = None
    """Address of the server, for example "http://sandbox:8080"; only with sandbox = "fusion"."""
    sandbox_workers: Annotated[int, Above(0)] = 2
    """Python calls that run on this machine at the same time; more than it has cores bring nothing."""

    def __post_init__(self) -> None:
        """Check types, ranges, and that the sandbox has what it needs.

        Raises:
            ConfigError: For a sandbox without address, an address without it, state that it cannot keep.
        """
        super().__post_init__()
        is_remote = self.sandbox == "fusion"
        if is_remote and self.sandbox_url is None:
            raise ConfigError(
                '[environment] sandbox = "fusion": sandbox_url is missing; give the address of the server'
            )
        if not is_remote and self.sandbox_url is not None:
            raise ConfigError(
                f'[environment] sandbox_url = {self.sandbox_url!r}: belongs to sandbox = "fusion", but '
                f"sandbox = {self.sandbox!r}; remove one of the two"
            )
        if is_remote and self.python_state == "kept":
            raise ConfigError(
                '[environment] python_state = "kept": a SandboxFusion server keeps nothing between calls; '
                'take sandbox = "local" or python_state = "fresh"'
            )


def build(section: ToolsSection) -> BuiltEnvironment:
    """Build the environment; a sandbox is started only where a tool or the reward runs Python."""
    with ExitStack() as stack:
        needs_sandbox = "python" in section.tools or section.reward in SANDBOX_REWARDS
        sandbox = _sandbox(section, stack) if needs_sandbox else None
        built = tool_environment(
            [_tool(name, section, sandbox) for name in section.tools],
            get_reward(section.reward, sandbox, timeout_s=section.python_timeout_s),
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


def _sandbox(section: ToolsSection, stack: ExitStack) -> Sandbox:
    if section.sandbox_url is not None:
        try:
            client = SandboxFusionClient(section.sandbox_url)
        except ValueError as error:
            raise ConfigError(f"[environment] sandbox_url = {section.sandbox_url!r}: {error}") from error
        stack.callback(client.close)
        return client
    return stack.enter_context(LocalSandbox(num_workers=section.sandbox_workers))


def _tool(name: str, section: ToolsSection, sandbox: Sandbox | None) -> Tool:
    if name == "python" and sandbox is not None:
        if section.python_state == "kept" and isinstance(sandbox, LocalSandbox):
            return python_session_tool(sandbox, timeout_s=section.python_timeout_s)
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
