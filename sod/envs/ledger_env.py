"""The ledger world as an environment, by the name that a TOML file gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sod.config import EnvironmentSection
from sod.config_schema import Above
from sod.envs.ledger import Table, ledger_reward, look_up
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.envs.tool_env import ToolEnvironment
from sod.sandbox import LocalSandbox
from sod.tools import Tool, python_tool, tool
from sod.types import Task

STOP_TOKENS = ("</tool_call>", "<|im_end|>")
"""A turn ends with its first call, so that a turn has one call, or with the answer."""


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


def lookup_tool(table: Table) -> Tool:
    """Make the tool that reads one question's table.

    Args:
        table: The hidden table.

    Returns:
        The tool `lookup(item, field)`.
    """

    def lookup(item: str, field: str) -> str:
        """Read one cell of the ledger.

        Args:
            item: Name of an item.
            field: "price", "stock" or "rival".
        """
        return look_up(table, item, field)

    return tool(lookup)


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

    def factory(task: Task) -> ToolEnvironment:
        return ToolEnvironment(
            task,
            (lookup_tool(task.fields["table"]), python),
            ledger_reward,
            max_errors_in_a_row=section.max_errors_in_a_row,
        )

    return BuiltEnvironment(
        factory=factory, tools=(lookup_tool({}), python), stop_tokens=STOP_TOKENS, close=sandbox.close
    )


ENTRY = EnvironmentEntry(options=LedgerSection, build=build)
