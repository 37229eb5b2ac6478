"""A plain function with type hints and a docstring, offered to the model as a tool."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sod.errors import SodError, ToolDefinitionError
from sod.tools.arguments import unknown_types

_NAMELESS_KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


class ToolUnavailableError(SodError):
    """The tool itself is down; raised by a tool, so that the trajectory is dropped and retried."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: What the model calls it.
        schema: The JSON schema for the chat template: `{"type": "function", "function": {...}}`.
        function: What runs, sync or async. What it returns is shown to the model as `str` shows it; a
            `ToolResult` keeps its own outcome and text.
        has_own_deadline: True where the function ends in time by itself. The runner then sets it none, so
            that waiting for a free place (a sandbox worker) does not count as running.
        for_trajectory: Makes the tool of one trajectory, and leaves on the stack what to do at its end, for a
            tool that keeps state; None where all trajectories share this one.
    """

    name: str
    schema: Mapping[str, Any]
    function: Callable[..., Any]
    has_own_deadline: bool = False
    for_trajectory: Callable[[ExitStack], Tool] | None = None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Schema of the arguments."""
        parameters: Mapping[str, Any] = self.schema["function"]["parameters"]
        return parameters

    @staticmethod
    def from_function(function: Callable[..., Any], *, has_own_deadline: bool = False) -> Tool:
        """Make a tool of a function or a bound method, by the rule of transformers and TRL.

        Every argument needs a type hint and a line under `Args:` in a Google-style docstring; the first
        paragraph describes the tool.

        Args:
            function: Sync or async.
            has_own_deadline: See `Tool`.

        Returns:
            The tool, named like the function.

        Raises:
            ToolDefinitionError: The function has no name, docstring, type hint or description that a schema
                can be made of, or takes arguments that a call by name cannot give.
        """
        # Slow to import, and only needed here.
        from transformers.utils.chat_template_utils import (
            DocstringParsingException,
            TypeHintParsingException,
            get_json_schema,
        )

        name = getattr(function, "__name__", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise ToolDefinitionError(
                f"Tool.from_function: {function!r} has no name; got a {type(function).__name__}, "
                "wanted a function or a method. Write it with `def`."
            )
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in _NAMELESS_KINDS:
                raise ToolDefinitionError(
                    f"Tool.from_function: {name} takes `{parameter}`, which a model cannot give by name. "
                    "Name every argument."
                )
        try:
            schema = get_json_schema(function)
        except (DocstringParsingException, TypeHintParsingException, NameError, ValueError) as error:
            raise ToolDefinitionError(
                f"Tool.from_function: {name} cannot be described to a model: {error} Give it a docstring, "
                "and every argument a type hint and a line under `Args:`."
            ) from error
        for argument, value in schema["function"]["parameters"]["properties"].items():
            if unknown := unknown_types(value):
                raise ToolDefinitionError(
                    f"Tool.from_function: argument `{argument}` of {name} is of type {unknown[0]}, which no "
                    "JSON value has. Use str, int, float, bool, list or dict."
                )
        return Tool(name=name, schema=schema, function=function, has_own_deadline=has_own_deadline)


def tool(function: Callable[..., Any]) -> Tool:
    """Make a tool of a function; usable as a decorator.

    Args:
        function: See `Tool.from_function`.

    Returns:
        The tool.

    Raises:
        ToolDefinitionError: See `Tool.from_function`.
    """
    return Tool.from_function(function)
