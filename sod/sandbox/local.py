"""The isolated Python interpreter that a student may run code in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sod.errors import SandboxUnavailableError
from sod.sandbox.calls import SandboxResult, encoded_inputs, failed, outcome_of, too_long
from sod.sandbox.requirements import bubblewrap, missing_requirement, start_advice
from sod.types import ToolOutcome

if TYPE_CHECKING:
    from sod.sandbox.session import SandboxSession
    from sod.sandbox.worker import Ending, Worker, WorkerSettings

_MIB = 1 << 20
_SELF_TEST_TIMEOUT_S = 60.0


class LocalSandbox:
    """Runs untrusted Python on this machine: no network, no processes, no files but its own, bounded in all.

    Each worker is a fork server inside one bubblewrap sandbox; a call costs a fork, not an interpreter start.
    Nothing is kept from one call to the next: not variables, not modules, not files; a `session` keeps them
    for the calls of one trajectory. The interpreter and the installed packages of this process are visible
    inside, read-only. Calls may come from any number of threads; at most `num_workers` run at a time. `math`
    written by a student in a thousand rollouts belongs here; code that wants a GPU does not.

    Args:
        num_workers: Calls that can run at the same time.
        memory_bytes: Address space of one call, in bytes.
        disk_bytes: Size of `/work` (the working directory) and of `/tmp`, each, in bytes.
        max_output_bytes: Most bytes kept of stdout and of stderr, each; the middle is dropped.
        preload: Modules imported once per worker, so that importing them costs a call nothing.

    Raises:
        SandboxUnavailableError: Isolation cannot be had here, or the self-test found a hole in it.
        ValueError: A size or number is out of range.
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        memory_bytes: int = 512 * _MIB,
        disk_bytes: int = 64 * _MIB,
        max_output_bytes: int = 64 << 10,
        preload: Sequence[str] = (),
    ) -> None:
        _check_at_least("num_workers", num_workers, 1)
        _check_at_least("memory_bytes", memory_bytes, 64 * _MIB)
        _check_at_least("disk_bytes", disk_bytes, 1 << 16)
        _check_at_least("max_output_bytes", max_output_bytes, 256)
        problem = missing_requirement()
        if problem is not None:
            raise SandboxUnavailableError(f"LocalSandbox: {problem}")
        # Needs libseccomp, so not before we know that it is there.
        from sod.sandbox.worker import WorkerSettings

        path, help_text = bubblewrap()
        self._settings: WorkerSettings = WorkerSettings(
            bubblewrap=path,
            help_text=help_text,
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
            max_output_bytes=max_output_bytes,
            preload=tuple(preload),
        )
        self._num_workers = num_workers
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._workers: set[Worker] = set()
        self._sessions: set[SandboxSession] = set()
        self._session_workers: list[Worker] = []
        # bubblewrap ends with the thread that started it, so one thread starts them all and outlives them.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sod-sandbox-starter")
        # Last in, first out: the worker used last has the warmest caches.
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        try:
            for _ in range(num_workers):
                self._idle.put(self._start_worker())
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        """Return the sandbox itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the sandbox."""
        self.close()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids, on this machine, of the running fork servers."""
        with self._lock:
            return tuple(sorted(worker.pid for worker in self._workers))

    def run(self, code: str, stdin: str = "", timeout_s: float = 10.0) -> SandboxResult:
        """Run one piece of Python and wait for its end.

        A worker that died before the code began is replaced and the call made once more; a worker that dies
        under the code is replaced and the result says KILLED.

        Args:
            code: Python source. It runs as `__main__` in an empty directory, `/work`.
            stdin: What it can read from standard input.
            timeout_s: Wall-clock deadline in seconds; processor time is limited to one second more.

        Returns:
            What it did.

        Raises:
            TypeError: `code` or `stdin` is not text.
            ValueError: `timeout_s` is out of range, or the sandbox is closed.
        """
        inputs = encoded_inputs("LocalSandbox.run", code, stdin, timeout_s)
        if self._closed.is_set():
            raise ValueError("LocalSandbox.run: the sandbox is closed. Make a new one.")
        refused = too_long(*inputs)
        if refused is not None:
            return refused
        worker = self._idle.get()
        try:
            worker, result = self._run_on(worker, inputs[0], inputs[1], timeout_s)
        except BaseException:
            if worker is not None:
                self._drop(worker)
            worker = None
            raise
        finally:
            self._idle.put(worker)
        return result

    def session(self) -> SandboxSession:
        """Begin an interpreter that keeps variables, modules and files from one call to the next.

        A session has a worker to itself from its first call on, besides the `num_workers` of `run`; when it
        ends, everything in the worker is wiped and the next session takes it. Each costs this process eight
        descriptors.

        Returns:
            The session; close it when its trajectory is over.

        Raises:
            ValueError: The sandbox is closed.
        """
        from sod.sandbox.session import SandboxSession

        with self._lock:
            if self._closed.is_set():
                raise ValueError("LocalSandbox.session: the sandbox is closed. Make a new one.")
            session = SandboxSession(
                self._take_session_worker, self._end_session, self._settings.max_output_bytes
            )
            self._sessions.add(session)
        return session

    def close(self) -> None:
        """End all workers and sessions; calls under way return KILLED or UNAVAILABLE.

        Closing twice is harmless. Returns when no process and no thread of the sandbox is left.
        """
        with self._lock:
            was_closed = self._closed.is_set()
            self._closed.set()
            for worker in self._workers:
                worker.kill()
            sessions = list(self._sessions)
        if was_closed:
            return
        for session in sessions:
            session.close()
        slots = [self._idle.get() for _ in range(self._num_workers)]
        self._release()
        # Callers that still wait for a worker find out from an empty one that there are none.
        for _ in slots:
            self._idle.put(None)

    def _release(self) -> None:
        """Close every worker and the thread that started them."""
        with self._lock:
            workers, self._workers = self._workers, set()
        for worker in workers:
            worker.close()
        self._starter.shutdown()

    def _run_on(
        self, worker: Worker | None, code: bytes, stdin: bytes, timeout_s: float
    ) -> tuple[Worker | None, SandboxResult]:
        """Run on this worker, or on a new one where it is gone; return the worker to keep and the result."""
        from sod.sandbox.worker import WorkerLostError

        reason = ""
        for _ in range(2):
            if worker is None:
                try:
                    worker = self._start_worker()
                except SandboxUnavailableError as error:
                    return None, failed(ToolOutcome.UNAVAILABLE, str(error))
            try:
                ending = worker.call(code, stdin, timeout_s)
            except WorkerLostError as error:
                self._drop(worker)
                worker = None
                if error.has_started:
                    is_overdue = error.is_overdue
                    outcome = ToolOutcome.TIMEOUT if is_overdue else ToolOutcome.KILLED
                    return None, failed(outcome, f"the sandbox worker was lost: {error.reason}")
                reason = error.reason
                continue
            if not worker.is_usable:
                self._drop(worker)
                worker = None
            return worker, _result(ending)
        return None, failed(ToolOutcome.UNAVAILABLE, f"the sandbox worker was lost twice: {reason}")

    def _start_worker(self) -> Worker:
        """Start a worker and prove its walls."""
        return self._starter.submit(self._start_in_this_thread).result()

    def _start_in_this_thread(self) -> Worker:
        """Do what `_start_worker` says, in the thread that outlives the workers."""
        from sod.sandbox.worker import Worker, WorkerLostError, WorkerStartError

        if self._closed.is_set():
            raise SandboxUnavailableError("LocalSandbox: it was closed")
        try:
            worker = Worker(self._settings)
        except (WorkerStartError, OSError) as error:
            # No descriptors or no memory left: that too is the sandbox's fault and never the code's.
            raise SandboxUnavailableError(f"LocalSandbox: {start_advice(str(error))}") from error
        code = (Path(__file__).parent / "inside" / "self_test.py").read_bytes()
        try:
            ending = worker.call(code, b"", _SELF_TEST_TIMEOUT_S)
        except WorkerLostError as error:
            worker.close()
            raise SandboxUnavailableError(f"LocalSandbox: {start_advice(error.reason)}") from error
        if ending.stdout != "checked\n" or ending.exit_code != 0:
            worker.close()
            found = (ending.stdout.replace("checked\n", "") + ending.stderr).strip().replace("\n", "; ")
            raise SandboxUnavailableError(
                f"LocalSandbox: the isolation does not hold on this machine: {found}. Nothing was run."
            )
        with self._lock:
            self._workers.add(worker)
            if self._closed.is_set():
                worker.kill()
        return worker

    def _take_session_worker(self) -> Worker:
        """Give a worker to a session: one that an earlier session left, or a new one."""
        with self._lock:
            if self._session_workers:
                return self._session_workers.pop()
        return self._start_worker()

    def _end_session(self, session: SandboxSession, worker: Worker | None) -> None:
        """Take back the worker of a session that is over, or of one that goes on without it."""
        if worker is not None and not worker.is_usable:
            self._drop(worker)
            worker = None
        with self._lock:
            if session.is_closed:
                self._sessions.discard(session)
            if worker is not None:
                self._session_workers.append(worker)

    def _drop(self, worker: Worker) -> None:
        """Forget a worker."""
        with self._lock:
            self._workers.discard(worker)
        worker.close()


def sandbox_problem() -> str | None:
    """Return why `LocalSandbox` cannot be had here and what to do, or None where it can.

    It starts one worker and ends it, which takes a fraction of a second.
    """
    try:
        LocalSandbox(num_workers=1).close()
    except SandboxUnavailableError as error:
        return str(error)
    return None


def _check_at_least(name: str, value: int, least: int) -> None:
    """Raise where a number is too small."""
    if value < least:
        raise ValueError(f"LocalSandbox: {name} is {value}, wanted at least {least}.")


def _result(ending: Ending) -> SandboxResult:
    """Say what an ending means."""
    return SandboxResult(
        outcome=outcome_of(ending.exit_code, is_timeout=ending.is_timeout),
        stdout=ending.stdout,
        stderr=ending.stderr,
        exit_code=ending.exit_code,
        seconds=ending.seconds,
        truncated=ending.is_truncated,
    )
