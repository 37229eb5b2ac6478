"""Work that may hang, side by side in a bounded number of threads."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Piece(Generic[T]):
    """One piece of work.

    Attributes:
        work: Done in a thread.
        timeout_s: Seconds after its start at which it is given up; None waits for ever.
        overdue: Gives the result of a piece that was given up, from the seconds that it ran.
        late: Called in the thread left behind when work that was given up ends after all.
    """

    work: Callable[[], T]
    timeout_s: float | None
    overdue: Callable[[float], T]
    late: Callable[[], None] | None = None


@dataclass(eq=False, kw_only=True)
class _Job(Generic[T]):
    """Pieces that are done one after the other.

    `owner` changes when a thread is given up, so that what it answers later is not taken.
    """

    pieces: tuple[Piece[T], ...]
    results: list[T] = field(default_factory=list)
    owner: int = 0
    started_at: float = 0.0
    deadline: float | None = None
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.error is not None or len(self.results) == len(self.pieces)


class WorkThreads:
    """Does chains of pieces: those of one chain one after the other, different chains at the same time.

    Python cannot stop a thread: work that does not return in time gets the result that its piece has for
    that, its thread is left behind and another takes its place.

    Args:
        num_threads: Pieces done at the same time, at least 1.
    """

    def __init__(self, num_threads: int) -> None:
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._num_threads = num_threads
        self._num_abandoned = 0
        self._is_closed = False
        for _ in range(num_threads):
            self._start_thread()

    @property
    def num_abandoned(self) -> int:
        """Threads that were given up at a deadline and still run."""
        return self._num_abandoned

    def run(self, chains: Sequence[Sequence[Piece[T]]]) -> list[list[T]]:
        """Do all pieces.

        Args:
            chains: Pieces that belong behind each other.

        Returns:
            One result per piece, in the order asked, whatever order they ended in.

        Raises:
            ValueError: After `close`.
            BaseException: What a piece raised, that of the first chain where several did; all chains have
                ended by then.
        """
        jobs = [_Job(pieces=tuple(chain)) for chain in chains]
        with self._changed:
            if self._is_closed:
                raise ValueError("ToolRunner: the runner is closed. Make a new one.")
            for job in jobs:
                if not job.is_done:
                    self._jobs.put(job)
            while True:
                self._give_up_overdue(jobs)
                if all(job.is_done for job in jobs):
                    break
                deadlines = [job.deadline for job in jobs if job.deadline is not None]
                self._changed.wait(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None)
        for job in jobs:
            if job.error is not None:
                raise job.error
        return [job.results for job in jobs]

    def close(self) -> None:
        """Let the threads end when the work under way is done; harmless twice.

        Abandoned threads are left behind.
        """
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            for _ in range(self._num_threads):
                self._jobs.put(None)

    def _start_thread(self) -> None:
        # Daemons: work that never returns must not keep the process from ending.
        threading.Thread(target=self._work, name="sod-tool", daemon=True).start()

    def _work(self) -> None:
        """Do jobs until told to end or given up."""
        while (job := self._jobs.get()) is not None:
            owner = job.owner
            while True:
                with self._changed:
                    if job.is_done:
                        break
                    piece = job.pieces[len(job.results)]
                    job.started_at = time.monotonic()
                    job.deadline = None if piece.timeout_s is None else job.started_at + piece.timeout_s
                    self._changed.notify_all()
                results, error = [], None
                try:
                    results = [piece.work()]
                except BaseException as raised:
                    # The caller of run gets it, and does not wait for ever.
                    error = raised
                with self._changed:
                    is_given_up = job.owner != owner
                    if not is_given_up:
                        job.results += results
                        job.error, job.deadline = error, None
                        self._changed.notify_all()
                if is_given_up:
                    self._end_late(piece)
                    return

    def _end_late(self, piece: Piece[Any]) -> None:
        try:
            if piece.late is not None:
                piece.late()
        finally:
            with self._changed:
                self._num_abandoned -= 1

    def _give_up_overdue(self, jobs: Sequence[_Job[Any]]) -> None:
        """Answer pieces whose deadline has passed, and have another thread go on with their job."""
        now = time.monotonic()
        for job in jobs:
            if job.deadline is None or job.deadline > now:
                continue
            job.results.append(job.pieces[len(job.results)].overdue(now - job.started_at))
            job.deadline = None
            job.owner += 1
            self._num_abandoned += 1
            self._start_thread()
            if not job.is_done:
                self._jobs.put(job)
