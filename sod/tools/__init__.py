"""Tools: plain functions a model may call, and the runner that calls them."""

from sod.tools.calls import Call, ParseFailure
from sod.tools.python import python_session_tool, python_tool
from sod.tools.runner import ToolRunner
from sod.tools.threads import Piece
from sod.tools.tool import Tool, ToolUnavailableError, tool
from sod.tools.truncation import truncate_middle

__all__ = [
    "Call",
    "ParseFailure",
    "Piece",
    "Tool",
    "ToolRunner",
    "ToolUnavailableError",
    "python_session_tool",
    "python_tool",
    "tool",
    "truncate_middle",
]
