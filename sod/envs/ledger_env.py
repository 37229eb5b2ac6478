"""The ledger world as an environment, by the name that a TOML file gives it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from sod.config_environments import EnvironmentSection
from sod.config_schema import Above, AtLeast, AtMost
from sod.envs.base import StepResult
from sod.envs.ledger import Question, Table, ledger_question, ledger_reward, ledger_task, look_up
from sod.envs.ledger_chain import MAX_LOOKUPS, MIN_LOOKUPS, chain_question
from sod.envs.ledger_faults import LedgerFaults
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry, TaskRequest
from sod.envs.tool_env import ToolEnvironment
from sod.errors import ConfigError, DataError
from sod.parsing import ParsedTurn
from sod.sandbox import LocalSandbox
from sod.tools import Tool, python_tool, tool
from sod.tools.calls import ParseFailure
from sod.types import Message, Task, ToolOutcome, ToolResult

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
    fault_rate: Annotated[float, AtLeast(0), AtMost(0.9)] = 0.0
    """Chance that a right call is answered with a fault; 0 for honest tools."""
    garbled_share: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    """Share of the faults that are a wrong text without an error word; the others say "timeout"."""
    fault_seed: Annotated[int, AtLeast(0)] = 0
    """Decides which calls of which task fail."""
    num_lookups: Annotated[int, AtLeast(MIN_LOOKUPS), AtMost(MAX_LOOKUPS)] | None = None
    """Look-ups of the questions that are made; None for one to three amounts, some through a rival."""
    has_codes: bool = False
    """Whether the questions that are made call items by codes that must be known by heart."""

    def __post_init__(self) -> None:
        """Check types and ranges, and that every setting is read at all."""
        super().__post_init__()
        for key, default in (("garbled_share", 0.5), ("fault_seed", 0)):
            if self.fault_rate == 0 and getattr(self, key) != default:
                raise ConfigError(
                    f"[environment] {key} = {getattr(self, key)!r}: is not read with fault_rate = 0"
                )
        if self.has_codes and self.num_lookups is None:
            raise ConfigError("[environment] has_codes = True: belongs to num_lookups; set both")

    @property
    def faults(self) -> LedgerFaults:
        """The faults of its tools."""
        return LedgerFaults(rate=self.fault_rate, garbled_share=self.garbled_share, seed=self.fault_seed)

    def question(self, seed: int, index: int, *, split: str = "train") -> Question:
        """Make one question of the kind that is set.

        Args:
            seed: Seed of the set of questions.
            index: Number of the question within the set, from 0.
            split: "train" or "held_out".

        Returns:
            The question.

        Raises:
            DataError: If an argument is out of range.
        """
        if self.num_lookups is None:
            return ledger_question(seed, index, split=split)
        return chain_question(
            seed, index, num_lookups=self.num_lookups, has_codes=self.has_codes, split=split
        )


class LedgerEnvironment(ToolEnvironment):
    """The standard tool environment, with observations short enough for a very small model.

    A result is cut to its last line (of a traceback: the exception) and to `MAX_OBSERVATION_CHARACTERS`; of a
    call that never reached a tool the student reads the kind of error. A turn that neither calls a tool nor
    states a number is answered with an error instead of being scored.
    """

    def __init__(self, task: Task, tools: Sequence[Tool], section: LedgerSection) -> None:
        """Prepare one attempt.

        Args:
            task: A ledger task.
            tools: `lookup` in its table, and `python`.
            section: Settings.
        """
        super().__init__(task, tools, ledger_reward, max_errors_in_a_row=section.max_errors_in_a_row)
        self._faults = section.faults
        self._num_right_calls = 0

    def reset(self) -> tuple[Message, ...]:
        """Begin an attempt; see `sod.envs.base.Environment.reset`."""
        self._num_right_calls = 0
        return super().reset()

    def step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        """Answer one turn; see `sod.envs.base.Environment.step`."""
        results = tuple(self._with_fault(result) for result in results)
        if not turn.calls and not re.search(r"\d", turn.content):
            turn, results = replace(turn, calls=(_UNREADABLE,)), (_NO_CALL,)
        return super().step(turn, tuple(replace(one, text=observation_text(one)) for one in results))

    def _with_fault(self, result: ToolResult) -> ToolResult:
        if result.is_error:
            return result
        number, self._num_right_calls = self._num_right_calls, self._num_right_calls + 1
        return self._faults.applied(result, self._task.task_id, number)


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
        return LedgerEnvironment(task, (lookup_tool(task.fields["table"]), python), section)

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


def make_tasks(section: LedgerSection, request: TaskRequest) -> list[Task]:
    """Make tasks of the kind that a section sets.

    Args:
        section: Settings.
        request: Which; the splits are "train" and "held_out".

    Returns:
        Tasks as of `sod.envs.ledger.ledger_task`.

    Raises:
        DataError: If an argument is out of range.
    """
    seed, split = request.seed, request.split
    if request.num_tasks < 1:
        raise DataError(f"ledger: num_tasks is {request.num_tasks}; ask for at least 1.")
    return [
        ledger_task(section.question(seed, index, split=split), task_id=f"ledger-{split}-{seed}-{index}")
        for index in range(request.first, request.first + request.num_tasks)
    ]


_LOOKUP = tool(_lookup_in({}))
ENTRY = EnvironmentEntry(options=LedgerSection, build=build, make_tasks=make_tasks)
