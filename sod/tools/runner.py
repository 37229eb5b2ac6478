"""Calls tools for many trajectories at once, bounded in time, in threads and in what the model reads."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from sod.errors import ToolDefinitionError
from sod.tools.arguments import argument_problems
from sod.tools.calls import Call, ParseFailure
from sod.tools.threads import Piece, WorkThreads
from sod.tools.tool import Tool, ToolUnavailableError
from sod.tools.truncation import MIN_CHARS, truncate_middle
from sod.types import ToolCall, ToolOutcome, ToolResult

T = TypeVar("T")

# An async tool is cancelled at the deadline; it gets this long to take notice before its thread is given up.
_CANCEL_GRACE_S = 1.0


class ToolRunner:
    """Makes calls and turns whatever happens into results in the order of the calls.

    The calls of one trajectory run one after the other, those of different trajectories at the same time.
    Python cannot stop a thread: a sync tool that does not return in time is answered with TIMEOUT, its thread
    is left behind and another takes its place. `num_abandoned_threads` counts those still running; they end
    with the process at the latest, but a tool that hangs often costs memory until then.

    Args:
        tools: What the model may call; names must differ.
        timeout_s: Deadline of one call in seconds, for tools without a deadline of their own.
        max_output_chars: Most characters of a result; the middle is dropped.
        num_threads: Calls that can run at the same time; `side_by_side` uses the same threads.

    Raises:
        ToolDefinitionError: Two tools have one name.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        *,
        timeout_s: float = 30.0,
        max_output_chars: int = 8192,
        num_threads: int = 8,
    ) -> None:
        if not 0 < timeout_s < float("inf"):
            raise ValueError(f"ToolRunner: timeout_s is {timeout_s}, wanted a positive number of seconds.")
        if max_output_chars < MIN_CHARS:
            raise ValueError(
                f"ToolRunner: max_output_chars is {max_output_chars}, wanted at least {MIN_CHARS}."
            )
        if num_threads < 1:
            raise ValueError(f"ToolRunner: num_threads is {num_threads}, wanted at least 1.")
        self._tools = _by_name(tools)
        self._timeout_s = timeout_s
        self._max_output_chars = max_output_chars
        self._threads = WorkThreads(num_threads)

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the runner."""
        self.close()

    @property
    def schemas(self) -> list[dict[str, object]]:
        """The tools' JSON schemas, for the chat template."""
        return [dict(tool.schema) for tool in self._tools.values()]

    @property
    def num_abandoned_threads(self) -> int:
        """Threads that were given up at a deadline and still run."""
        return self._threads.num_abandoned

    def run(self, calls: Sequence[Call]) -> tuple[ToolResult, ...]:
        """Make the calls of one turn, one after the other.

        Args:
            calls: What the turn asks for; a `ParseFailure` is answered with its reason.

        Returns:
            One result per call, in their order.

        Raises:
            ValueError: The runner is closed.
        """
        return self.run_batch([calls])[0]

    def run_batch(
        self, batch: Sequence[Sequence[Call]], *, tools: Sequence[Sequence[Tool]] | None = None
    ) -> list[tuple[ToolResult, ...]]:
        """Make the calls of many trajectories' turns, different trajectories at the same time.

        Args:
            batch: The calls of each trajectory.
            tools: The tools of each trajectory, where environments bring their own; None means those of
                the runner for all.

        Returns:
            One tuple of results per trajectory, both in the order asked.

        Raises:
            ToolDefinitionError: Two tools of one trajectory have one name.
            ValueError: The runner is closed, or there is not one set of tools per trajectory.
        """
        if tools is not None and len(tools) != len(batch):
            raise ValueError(
                f"ToolRunner.run_batch: tools has {len(tools)} entries for {len(batch)} trajectories, wanted "
                "one sequence of tools for each."
            )
        named = [self._tools] * len(batch) if tools is None else [_by_name(row) for row in tools]
        chains = [[self._piece(call, own) for call in calls] for calls, own in zip(batch, named, strict=True)]
        return [tuple(results) for results in self._threads.run(chains)]

    def side_by_side(self, pieces: Sequence[Piece[T]]) -> list[T]:
        """Do other work of many trajectories in the same threads.

        Args:
            pieces: One for each of them.

        Returns:
            Their results in the order asked.

        Raises:
            ValueError: The runner is closed.
            BaseException: What a piece raised, that of the first where several did.
        """
        return [result for (result,) in self._threads.run([[piece] for piece in pieces])]

    def close(self) -> None:
        """Let the threads end when the calls under way are done; harmless twice."""
        self._threads.close()

    def _piece(self, call: Call, tools: Mapping[str, Tool]) -> Piece[ToolResult]:
        """Say how a call is made, and what the model reads where that takes too long."""
        name = call.name if isinstance(call, ToolCall) else ""
        return Piece(
            work=partial(self._timed_answer, call, tools),
            timeout_s=self._limit_s(call, tools),
            overdue=lambda seconds: replace(self._timed_out(name), seconds=seconds),
        )

    def _limit_s(self, call: Call, tools: Mapping[str, Tool]) -> float | None:
        """Return after how many seconds a call is given up."""
        tool = tools.get(call.name) if isinstance(call, ToolCall) else None
        if tool is None or tool.has_own_deadline:
            return None
        return self._timeout_s + (_CANCEL_GRACE_S if inspect.iscoroutinefunction(tool.function) else 0.0)

    def _timed_answer(self, call: Call, tools: Mapping[str, Tool]) -> ToolResult:
        """Make one call and say how long it took."""
        started_at = time.monotonic()
        result = self._answer(call, tools)
        return replace(result, seconds=time.monotonic() - started_at)

    def _timed_out(self, name: str) -> ToolResult:
        """Return the result of a call that took too long."""
        text = f"The call was stopped: {name} ran longer than {self._timeout_s:g} seconds."
        return ToolResult(name=name, outcome=ToolOutcome.TIMEOUT, text=text)

    def _answer(self, call: Call, tools: Mapping[str, Tool]) -> ToolResult:
        """Make one call; return what the model shall read."""
        if isinstance(call, ParseFailure):
            text = f"The tool call could not be read: {call.reason}"
            result = ToolResult(name="", outcome=ToolOutcome.INVALID_JSON, text=text)
        elif call.name not in tools:
            text = _unknown_text(call.name, tools)
            result = ToolResult(name=call.name, outcome=ToolOutcome.UNKNOWN_TOOL, text=text)
        else:
            tool = tools[call.name]
            problems = argument_problems(tool.parameters, call.arguments)
            if problems:
                result = ToolResult(name=tool.name, outcome=ToolOutcome.BAD_ARGS, text=" ".join(problems))
            else:
                result = self._invoke(tool, call)
        # Half of a surrogate pair, which JSON can spell, would stop every tokenizer.
        text = result.text.encode(errors="replace").decode()
        return replace(result, text=truncate_middle(text, self._max_output_chars))

    def _invoke(self, tool: Tool, call: ToolCall) -> ToolResult:
        """Run the function; an exception becomes text."""
        try:
            value = tool.function(**call.arguments)
            if inspect.isawaitable(value):
                value = asyncio.run(self._await(tool, value))
            if isinstance(value, ToolResult):
                return replace(value, name=tool.name)
            return ToolResult(name=tool.name, outcome=ToolOutcome.OK, text=str(value))
        except ToolUnavailableError as error:
            return ToolResult(name=tool.name, outcome=ToolOutcome.UNAVAILABLE, text=str(error))
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            text = _described(error)
            return ToolResult(name=tool.name, outcome=ToolOutcome.TOOL_ERROR, text=text)

    async def _await(self, tool: Tool, value: Awaitable[object]) -> object:
        """Wait for an async tool, cancelled at the deadline unless it has its own."""
        try:
            async with asyncio.timeout(None if tool.has_own_deadline else self._timeout_s) as timeout:
                return await value
        except TimeoutError:
            if timeout.expired():
                return self._timed_out(tool.name)
            raise


def _by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    """Return tools by their names, which must differ."""
    named: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in named:
            raise ToolDefinitionError(
                f"ToolRunner: two tools are named {tool.name}, wanted one of each name. Rename one."
            )
        named[tool.name] = tool
    return named


def _unknown_text(name: str, tools: Mapping[str, Tool]) -> str:
    """Return a text that names the nearest tool and all there are."""
    if not tools:
        return f"There is no tool named {name}; no tools are available."
    near = difflib.get_close_matches(name, tools, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"There is no tool named {name}.{hint} Available: {', '.join(tools)}."


def _described(error: BaseException) -> str:
    """Return type and message of an exception, which may be too broken to say more than its type."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except Exception:
        return name
