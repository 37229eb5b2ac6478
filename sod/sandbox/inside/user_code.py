"""Run the user's code in the process that was forked for it: one piece, or one after the other."""

from __future__ import annotations
import __future__

import ast
import atexit
import contextlib
import io
import linecache
import os
import signal
import struct
import sys
import threading
import traceback
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

FILE_NAME = "<code>"
# Later pieces of a session are "<code 2>" and so on: a traceback through an earlier one shows its lines.
_FILE_NAME_BEGIN = "<code"
CALL_HEADER = struct.Struct("=8sQQ")
"""What the host sends before each piece of a session: a mark, bytes of code, bytes of stdin."""

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
    own_streams = [_open_output(fd) for fd in (1, 2)]
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


def run_session(command_fd: int) -> NoReturn:
    """Run pieces of code as one `__main__`, variables, modules and files kept, until the host hangs up.

    A piece comes as a `CALL_HEADER`, code and stdin; its mark and one byte, the exit code, answer it: what
    the code itself writes there is no answer. `SystemExit` ends the piece and not the session; threads that a
    piece started go on while a later one runs.

    Args:
        command_fd: Descriptor of a connected stream socket.
    """
    try:
        sys.argv = [""]
        module = _new_main()
        own_streams = [_open_output(fd) for fd in (1, 2)]
        number = 0
        while header := _read_exactly(command_fd, CALL_HEADER.size):
            mark, num_code_bytes, num_stdin_bytes = CALL_HEADER.unpack(header)
            code = _read_exactly(command_fd, num_code_bytes).decode(errors="surrogatepass")
            stdin = io.BytesIO(_read_exactly(command_fd, num_stdin_bytes))
            number += 1
            # The piece before may have closed them or put others in their place.
            own_streams = [
                _open_output(fd) if stream.closed else stream
                for fd, stream in enumerate(own_streams, start=1)
            ]
            sys.stdout, sys.stderr = own_streams
            sys.stdin = io.TextIOWrapper(stdin, encoding="utf-8", errors="replace")
            exit_code = _guarded(code, module, FILE_NAME if number == 1 else f"{_FILE_NAME_BEGIN} {number}>")
            for stream in (sys.stdout, sys.stderr, *own_streams):
                # Whatever the piece has put there, its output is its own business.
                with contextlib.suppress(Exception):
                    stream.flush()
            os.write(command_fd, mark + bytes([exit_code]))
    finally:
        os._exit(0)


def _read_exactly(fd: int, num_bytes: int) -> bytes:
    """Read so many bytes; fewer, or none, only where the host hung up."""
    data = bytearray()
    while len(data) < num_bytes and (part := os.read(fd, num_bytes - len(data))):
        data += part
    return bytes(data)


def _open_output(fd: int) -> TextIO:
    """Open an output stream on a descriptor that outlives it."""
    # Line buffering: what was printed before an endless loop or a crash must not be lost.
    return os.fdopen(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _new_main() -> types.ModuleType:
    """Make an empty `__main__`."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    return module


def _guarded(code: str, module: types.ModuleType, file_name: str) -> int:
    """Run the code, report what it raises, return the exit code."""
    try:
        _execute(code, module, file_name)
    except SystemExit as error:
        return _system_exit_code(error)
    except BaseException as error:
        _report(error)
        return 1
    return 0


def _run(code: str) -> int:
    """Run the code and what an interpreter runs after it; return the exit code."""
    exit_code = _guarded(code, _new_main(), FILE_NAME)
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


def _execute(code: str, module: types.ModuleType, file_name: str) -> None:
    """Compile and run the code; show the value of a last expression."""
    # Lines as Python counts them, each with its end: the traceback's markers are placed by that.
    lines = [f"{line}\n" for line in code.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    linecache.cache[file_name] = (len(code), None, lines, file_name)
    tree = ast.parse(code, file_name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, file_name, "exec", dont_inherit=True)
    # Compiled before anything runs, so that an error in it is an error of the whole, as in a file.
    value_code = None
    if isinstance(last, ast.Expr):
        flags = body.co_flags & _FUTURE_FLAGS
        value_code = compile(ast.Expression(last.value), file_name, "eval", flags=flags, dont_inherit=True)
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
        user = [frame for frame in current.stack if frame.filename.startswith(_FILE_NAME_BEGIN)]
        current.stack = traceback.StackSummary.from_list(user)
        linked = (current.__cause__, current.__context__, *(current.exceptions or ()))
        pending.extend(other for other in linked if other is not None)
