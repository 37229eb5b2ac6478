"""The ledger world as an environment, by the name that a TOML file gives it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from sod.config import EnvironmentSection
from sod.config_schema import Above
from sod.envs.base import StepResult
from sod.envs.ledger import Table, ledger_reward, look_up
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.envs.tool_env import ToolEnvironment
from sod.parsing import ParsedTurn
from sod.sandbox import LocalSandbox
from sod.tools import Tool, python_tool, tool
from sod.tools.calls import ParseFailure
from sod.types import Task, ToolOutcome, ToolResult

STOP_TOKENS = ("</tool_call>", "<|im_end|>")
"""A turn ends with its first call, so that a turn has one call, or with the answer."""

MAX_OBSERVATION_CHARACTERS = 48
_NO_CALL = ToolResult(name="", outcome=ToolOutcome.TOOL_ERROR, text="no call and no number")
_UNREADABLE = ParseFailure(text="", reason="no call and no number")


@dataclass(frozen=True, kw_only=True)
class LedgerSection(EnvironmentSection):
    """Questions about a hidden table, answered with `lookup` and an isolated Python."""

    name: str = "ledger"
    """Name of the environment."""
    max_errors_in_a_row: Annotated[int, Above(0)] = 3
    """Turns in a row with an error before a trajectory is ended."""
    python_timeout_s: Annotated[float, Above(0)] = 2.0
    """Wall-clock limit of one Python call, in seconds."""
    python_workers: Annotated[int, Above(0)] = 2
    """Python calls that can run at the same time."""


class LedgerEnvironment(ToolEnvironment):
    """The standard tool environment, with observations short enough for a very small model.

    A result is cut to its last line (of a traceback: the exception) and to `MAX_OBSERVATION_CHARACTERS`; of a
    call that never reached a tool the student reads the kind of error. A turn that neither calls a tool nor
    states a number is answered with an error instead of being scored.
    """

    def step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        """Answer one turn; see `sod.envs.base.Environment.step`."""
        if not turn.calls and not re.search(r"\d", turn.content):
            turn, results = replace(turn, calls=(_UNREADABLE,)), (_NO_CALL,)
        return super().step(turn, tuple(replace(one, text=observation_text(one)) for one in results))


def observation_text(result: ToolResult) -> str:
    """What the student reads of a result: at most a line.

    Args:
        result: As the tool gave it.

    Returns:
        The last line; "error: " and a few words where the call failed.
    """
    lines = [line.strip() for line in result.text.splitlines() if line.strip()] or [""]
    if result.outcome is ToolOutcome.OK:
        return lines[-1][:MAX_OBSERVATION_CHARACTERS]
    if result.outcome is ToolOutcome.TOOL_ERROR:
        return f"error: {lines[-1]}"[:MAX_OBSERVATION_CHARACTERS]
    return f"error: {result.outcome}"


def lookup_tool(table: Table) -> Tool:
    """Make the tool that reads one question's table.

    Args:
        table: The hidden table.

    Returns:
        The tool `lookup(item, field)`.
    """
    # The schema is the same for every table, and making it costs more than a look-up.
    return replace(_LOOKUP, function=_lookup_in(table))


def build(section: LedgerSection) -> BuiltEnvironment:
    """Build the environment and start its sandbox; `close` ends it.

    Args:
        section: Settings.

    Returns:
        The environment, for tasks of `sod.envs.ledger.ledger_tasks`.

    Raises:
        SandboxUnavailableError: If isolation cannot be had on this machine.
    """
    sandbox = LocalSandbox(num_workers=section.python_workers)
    python = python_tool(sandbox, timeout_s=section.python_timeout_s)

    def factory(task: Task) -> LedgerEnvironment:
        return LedgerEnvironment(
            task,
            (lookup_tool(task.fields["table"]), python),
            ledger_reward,
            max_errors_in_a_row=section.max_errors_in_a_row,
        )

    # The template of the demo shows no schemas; a larger model's template does.
    return BuiltEnvironment(
        factory=factory, tools=(lookup_tool({}), python), stop_tokens=STOP_TOKENS, close=sandbox.close
    )


def _lookup_in(table: Table) -> Callable[[str, str], str]:
    def lookup(item: str, field: str) -> str:
        """Read one cell of the ledger.

        Args:
            item: Name of an item.
            field: "price", "stock" or "rival".
        """
        return look_up(table, item, field)

    return lookup


_LOOKUP = tool(_lookup_in({}))
ENTRY = EnvironmentEntry(options=LedgerSection, build=build)
