"""Environment classes written for TRL's `environment_factory`, run as they are.

Such a class has `reset(**columns)`, which may return a text for the end of the prompt; every other public
method is a tool; `get_reward()` or the attribute `reward` says how the attempt went.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sod.config_environments import EnvironmentSection
from sod.envs.base import StepResult
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.errors import ConfigError, DataError
from sod.parsing import ParsedTurn
from sod.tools import Tool, tool
from sod.types import Message, Task, ToolResult

ClassFactory = Callable[[], Any]
"""Makes an instance; usually the class itself."""

_NO_TOOLS = ("reset", "get_reward")


@dataclass(frozen=True, kw_only=True)
class TRLSection(EnvironmentSection):
    """An environment class of yours, as TRL's `environment_factory` takes it."""

    name: str = "trl"
    """Name of the environment."""
    factory: str
    """"module:Class", or a function without arguments that makes an instance."""
    success_threshold: float = 1.0
    """Reward from which on a trajectory counts as solved."""


class TRLEnvironment:
    """One attempt in an instance of such a class.

    Attributes:
        tools: Its public methods.
    """

    tools: Sequence[Tool]

    def __init__(
        self, task: Task, instance: Any, give_back: Callable[[Any], None], *, success_threshold: float = 1.0
    ) -> None:
        """Prepare one attempt.

        Args:
            task: Its messages and fields are what `reset` is given.
            instance: Used by this attempt alone until it is given back.
            give_back: Called with the instance at the end.
            success_threshold: Reward from which on the task counts as solved.
        """
        self.tools = instance_tools(instance)
        self._task = task
        self._instance = instance
        self._give_back = give_back
        self._success_threshold = success_threshold
        self._reward = 0.0

    def reset(self) -> tuple[Message, ...]:
        """Begin: what `reset` returns is added to the last message.

        Returns:
            The task's messages.

        Raises:
            DataError: `reset` refuses the columns, or returns something else than text or None.
        """
        columns = {key: value for key, value in self._task.fields.items() if key != "environment"}
        columns |= {"prompt": [dict(message) for message in self._task.messages]}
        kind = type(self._instance).__name__
        try:
            observation = self._instance.reset(**columns)
        except TypeError as error:
            raise DataError(
                f"TRLEnvironment: {kind}.reset refuses the columns {sorted(columns)} of task "
                f"{self._task.task_id!r}: {error}. Let it take **kwargs."
            ) from error
        self._reward = 0.0
        if observation is None:
            return self._task.messages
        if not isinstance(observation, str):
            raise DataError(
                f"TRLEnvironment: {kind}.reset returned {type(observation).__name__}; wanted text or None "
                "(images are not supported)."
            )
        *before, last = self._task.messages
        return (*before, {**last, "content": last["content"] + observation})

    def step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        """Answer one turn; a turn without a call ends the attempt.

        Args:
            turn: What the student wrote.
            results: What the methods answered.

        Returns:
            The results, and how much the reward grew since the last turn.
        """
        before, self._reward = self._reward, read_reward(self._instance)
        is_done = not turn.calls
        return StepResult(
            messages=() if is_done else tuple(_message(result) for result in results),
            results=results,
            reward=self._reward - before,
            is_done=is_done,
            is_success=self._reward >= self._success_threshold,
        )

    def close(self) -> None:
        """Give the instance back, for another attempt."""
        self._give_back(self._instance)


def trl_environment(
    factory: ClassFactory | Mapping[str, ClassFactory], *, success_threshold: float = 1.0
) -> BuiltEnvironment:
    """Make environments of a class that TRL's `environment_factory` takes.

    Instances are made when there is none free, and reset before every attempt, as TRL does.

    Args:
        factory: The class; or classes by name, of which a task's field `environment` chooses one.
        success_threshold: Reward from which on a trajectory counts as solved.

    Returns:
        The environment.

    Raises:
        ConfigError: A class has no `reset` or says nothing of a reward.
        ToolDefinitionError: A public method has no docstring or type hints that a tool can be made of.
    """
    factories = dict(factory) if isinstance(factory, Mapping) else {None: factory}
    pools = {name: _Pool(make) for name, make in factories.items()}
    tools: dict[str, Tool] = {}
    for pool in pools.values():
        tools.update({one.name: one for one in pool.probe()})

    def make(task: Task) -> TRLEnvironment:
        name = task.fields.get("environment") if isinstance(factory, Mapping) else None
        if name not in pools:
            raise DataError(
                f"trl_environment: task {task.task_id!r} has environment {name!r}; wanted one of "
                f"{', '.join(str(key) for key in pools)}."
            )
        pool = pools[name]
        return TRLEnvironment(task, pool.take(), pool.give_back, success_threshold=success_threshold)

    return BuiltEnvironment(factory=make, tools=tuple(tools.values()))


def instance_tools(instance: Any) -> tuple[Tool, ...]:
    """Make tools of the public methods of an instance, in alphabetical order.

    Args:
        instance: Of an environment class.

    Returns:
        The tools; `reset` and `get_reward` are none.
    """
    names = [name for name, _ in inspect.getmembers(type(instance), predicate=inspect.isfunction)]
    public = [name for name in names if not name.startswith("_") and name not in _NO_TOOLS]
    return tuple(tool(getattr(instance, name)) for name in public)


def read_reward(instance: Any) -> float:
    """Read how an attempt stands: `get_reward()`, sync or async, or else the attribute `reward`.

    Args:
        instance: Of an environment class.

    Returns:
        The reward so far; None counts as 0.
    """
    if not hasattr(instance, "get_reward"):
        return float(instance.reward or 0.0)
    value = instance.get_reward()
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    return float(value or 0.0)


def build(section: TRLSection) -> BuiltEnvironment:
    """Build the environment from the class that a section names.

    Args:
        section: Settings.

    Returns:
        The environment.

    Raises:
        ConfigError: The class cannot be imported, or is no environment.
    """
    module_name, _, attribute = section.factory.partition(":")
    try:
        factory: ClassFactory = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"[environment] factory = {section.factory!r}: cannot be imported: {error}; wanted 'module:Class'"
        ) from error
    return trl_environment(factory, success_threshold=section.success_threshold)


class _Pool:
    """Instances of one class that no attempt uses now."""

    def __init__(self, make: ClassFactory) -> None:
        self._make = make
        self._free: list[Any] = []
        self._lock = threading.Lock()

    def probe(self) -> tuple[Tool, ...]:
        """Make the first instance, see that it can be used, and give its tools."""
        instance = self._make()
        kind = type(instance).__name__
        if not callable(getattr(instance, "reset", None)):
            raise ConfigError(f"trl_environment: {kind} has no method reset(**columns); add one")
        if not hasattr(instance, "get_reward") and not hasattr(instance, "reward"):
            raise ConfigError(
                f"trl_environment: {kind} has neither get_reward() nor an attribute `reward`; set the "
                "attribute in __init__ and change it in the tools"
            )
        self._free.append(instance)
        return instance_tools(instance)

    def take(self) -> Any:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._make()

    def give_back(self, instance: Any) -> None:
        with self._lock:
            self._free.append(instance)


def _message(result: ToolResult) -> Message:
    message = {"role": "tool", "content": result.text}
    return {**message, "name": result.name} if result.name else message


ENTRY = EnvironmentEntry(options=TRLSection, build=build)
