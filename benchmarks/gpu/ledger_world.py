"""The ledger world without a sandbox: its `python` tool adds and subtracts, and runs nothing.

The expert's and the students' right calls print a sum of whole numbers. A GPU machine that is lent for
minutes has neither bubblewrap nor libseccomp, and what is measured there is training, not isolation. A run
names it `name = "benchmarks.gpu.ledger_world:ENTRY"`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sod.envs.ledger_env import STOP_TOKENS, LedgerEnvironment, LedgerSection, lookup_tool, make_tasks
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.tools import Tool
from sod.types import Task

NAME = f"{__name__}:ENTRY"
_SUM = re.compile(r"print\(\s*([+-]?\d+(?:\s*[+-]\s*\d+)*)\s*\)")


@dataclass(frozen=True, kw_only=True)
class ArithmeticLedgerSection(LedgerSection):
    """The ledger's questions, tools and faults; `python` takes sums only."""

    name: str = NAME
    """Name of the environment."""


def python(code: str) -> str:
    """Prints a sum of whole numbers.

    Args:
        code: Such as print(3+4-5).
    """
    found = _SUM.fullmatch(code.strip())
    if found is None:
        raise SyntaxError("only sums of whole numbers can be printed here")
    return str(sum(int(number) for number in re.findall(r"[+-]?\d+", re.sub(r"\s", "", found.group(1)))))


def build(section: ArithmeticLedgerSection) -> BuiltEnvironment:
    """Build the environment; it holds nothing that has to be given back."""
    tool = Tool.from_function(python)

    def factory(task: Task) -> LedgerEnvironment:
        return LedgerEnvironment(task, (lookup_tool(task.fields["table"]), tool), section)

    return BuiltEnvironment(factory=factory, tools=(lookup_tool({}), tool), stop_tokens=STOP_TOKENS)


ENTRY = EnvironmentEntry(options=ArithmeticLedgerSection, build=build, make_tasks=make_tasks)
