"""Run one piece of the user's code in the process that was forked for it."""

from __future__ import annotations
import __future__

import ast
import atexit
import linecache
import os
import signal
import sys
import threading
import traceback
import types
from typing import NoReturn

FILE_NAME = "<code>"

_FUTURE_FLAGS = 0
for _name in __future__.all_feature_names:
    _FUTURE_FLAGS |= getattr(__future__, _name).compiler_flag


def run_and_exit(code: str) -> NoReturn:
    """Run the code as `__main__` and end this process the way an interpreter would.

    The value of a last expression statement is printed as a REPL prints it. An exception prints its traceback
    on stderr, with the user's frames only, and gives exit code 1; `SystemExit` gives its own. An uncaught
    `MemoryError` ends the process by SIGKILL, as the kernel would have done.

    Args:
        code: Python source text.
    """
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
    # Line buffering: what was printed before an endless loop or a crash must not be lost.
    own_streams = [
        os.fdopen(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        for fd in (1, 2)
    ]
    sys.stdout, sys.stderr = own_streams
    sys.argv = [""]
    exit_code = 1
    try:
        exit_code = _run(code)
        # The code may have put others in their place.
        for stream in own_streams:
            if not stream.closed:
                stream.flush()
    finally:
        os._exit(exit_code)


def _run(code: str) -> int:
    """Run the code and what an interpreter runs after it; return the exit code."""
    exit_code = 0
    try:
        _execute(code)
    except SystemExit as error:
        exit_code = _system_exit_code(error)
    except BaseException as error:
        exit_code = 1
        _report(error)
    # The private function is what the interpreter itself calls at its end: it wakes idle executor threads
    # and joins what is not a daemon. There is no public one.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            exit_code = exit_code or 1
    return exit_code


def _execute(code: str) -> None:
    """Compile and run the code; show the value of a last expression."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    # Lines as Python counts them, each with its end: the traceback's markers are placed by that.
    lines = [f"{line}\n" for line in code.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    linecache.cache[FILE_NAME] = (len(code), None, lines, FILE_NAME)
    tree = ast.parse(code, FILE_NAME)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, FILE_NAME, "exec", dont_inherit=True)
    # Compiled before anything runs, so that an error in it is an error of the whole, as in a file.
    value_code = None
    if isinstance(last, ast.Expr):
        flags = body.co_flags & _FUTURE_FLAGS
        value_code = compile(ast.Expression(last.value), FILE_NAME, "eval", flags=flags, dont_inherit=True)
    exec(body, module.__dict__)  # noqa: S102 - what this process is for
    if value_code is not None:
        sys.displayhook(eval(value_code, module.__dict__))  # noqa: S307 - likewise


def _system_exit_code(error: SystemExit) -> int:
    """Return the exit code that an interpreter would give."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> None:
    """Print the traceback as the user should see it."""
    if isinstance(error, MemoryError):
        # The traceback object keeps the frames, and the frames keep what filled the memory.
        error.__traceback__ = None
        text = str(error) or "the code went over its memory limit"
        os.write(2, f"{type(error).__name__}: {text}\n".encode(errors="replace"))
        os.kill(os.getpid(), signal.SIGKILL)
    report = traceback.TracebackException.from_exception(error)
    _keep_user_frames(report)
    for line in report.format():
        sys.stderr.write(line)


def _keep_user_frames(report: traceback.TracebackException) -> None:
    """Drop the frames of this file and of libraries, here and in every exception it hangs together with."""
    pending = [report]
    while pending:
        current = pending.pop()
        user = [frame for frame in current.stack if frame.filename == FILE_NAME]
        current.stack = traceback.StackSummary.from_list(user)
        linked = (current.__cause__, current.__context__, *(current.exceptions or ()))
        pending.extend(other for other in linked if other is not None)
