"""Mathematical equality in processes of their own.

math-verify keeps its time limits by signal.alarm, which works in a main thread only and fights with any
other alarm of the process; and an expression such as a power tower can hang in C code that no signal
reaches. A helper process has a main thread of its own, and is killed where even that does not help.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
import threading
from multiprocessing.connection import wait
from queue import LifoQueue

from sod.errors import SodError

CHECK_SECONDS = 5
"""What the helper allows one parse and one comparison."""
_START_SECONDS = 120.0
_KILL_SECONDS = 4.0 * CHECK_SECONDS
# Longer than any answer, and shorter than what a pipe takes without a reader.
_MAX_CHARS = 8192


class MathChecker:
    """Owns the helper process; started at the first check, started anew after it had to be killed."""

    def __init__(self, *, kill_s: float = _KILL_SECONDS) -> None:
        """Prepare; nothing is started yet.

        Args:
            kill_s: Seconds after which a helper that does not answer is killed.
        """
        self._kill_s = kill_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def check(self, answer: str, candidate: str) -> bool:
        """Compare two expressions.

        Args:
            answer: Ground truth, plain or LaTeX.
            candidate: What the model wrote.

        Returns:
            Whether they are equal; False where that takes too long to tell. Texts of more than 8192
            characters are compared as texts.

        Raises:
            ModuleNotFoundError: math-verify is not installed.
            SodError: The helper does not start.
        """
        if max(len(answer), len(candidate)) > _MAX_CHARS:
            return answer.strip() == candidate.strip()
        with self._lock:
            process = self._running()
            request = json.dumps({"answer": answer, "candidate": candidate}).encode() + b"\n"
            reply = b""
            try:
                if process.stdin is not None:
                    process.stdin.write(request)
                    process.stdin.flush()
                reply = _read_line(process, self._kill_s)
            except BrokenPipeError:
                pass
            if not reply:
                # Hung, or taken down by the expression: not verified, and a fresh helper for the next.
                self._stop()
                return False
            return bool(json.loads(reply))

    def close(self) -> None:
        """Stop the helper."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        if importlib.util.find_spec("math_verify") is None:
            raise ModuleNotFoundError(
                'reward "math" needs math-verify: pip install "sod-kernels[train]".', name="math_verify"
            )
        process = subprocess.Popen(
            [sys.executable, "-m", "sod.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._process = process
        if not _read_line(process, _START_SECONDS):
            self._stop()
            raise SodError(
                f"check_math: the helper process did not start within {_START_SECONDS:.0f} s; run "
                f"`{sys.executable} -m sod.math_worker` to see why."
            )
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        process.wait()


def _read_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """One line of the helper, or nothing where it hangs or is gone."""
    stdout = process.stdout
    if stdout is None or not wait([stdout.fileno()], timeout_s):
        return b""
    return stdout.readline()


class MathPool:
    """Several helper processes for callers in several threads; as many start as are busy at the same time."""

    def __init__(self, num_processes: int) -> None:
        """Prepare; nothing is started yet.

        Args:
            num_processes: Helpers at most, at least 1.
        """
        if num_processes < 1:
            raise ValueError(f"MathPool: num_processes must be 1 or more, got {num_processes}.")
        self._checkers = [MathChecker() for _ in range(num_processes)]
        # The one that was used last is warm.
        self._idle: LifoQueue[MathChecker] = LifoQueue()
        for checker in self._checkers:
            self._idle.put(checker)

    def check(self, answer: str, candidate: str) -> bool:
        """Compare two expressions in an idle helper; see `MathChecker.check`."""
        checker = self._idle.get()
        try:
            return checker.check(answer, candidate)
        finally:
            self._idle.put(checker)

    def close(self) -> None:
        """Stop the helpers."""
        for checker in self._checkers:
            checker.close()


_POOL = MathPool(min(4, os.cpu_count() or 1))
atexit.register(_POOL.close)


def check_math(answer: str, candidate: str) -> bool:
    """Compare two expressions with the `MathPool` of this process.

    Args:
        answer: Ground truth, plain or LaTeX.
        candidate: What the model wrote.

    Returns:
        Whether they are equal; False where that takes too long to tell.
    """
    return _POOL.check(answer, candidate)
