"""Jobs that any number of processes share: a folder each, a lock while one works on it, then a result.

Nothing but the file system says what is left, so processes may be killed, paused and started at will.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sod.errors import CheckpointError, SodError

RESULT = "result.json"
_POLL_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work.

    Attributes:
        name: Its folder below the output.
        needs: Names of the jobs whose results it reads.
        settings: What its result depends on; a result with other settings is not taken for it.
        work: Does it, in the folder that it is given, and returns what the result shall hold.
    """

    name: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    work: Callable[[Path], Mapping[str, Any]]


def read_result(root: Path, name: str) -> dict[str, Any] | None:
    """Read the result of a job; None where it is not done."""
    path = root / name / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_done(root: Path, job: Job) -> bool:
    """Say whether a job has its result.

    Raises:
        CheckpointError: If it has one of other settings.
    """
    result = read_result(root, job.name)
    if result is None:
        return False
    wanted = json.loads(json.dumps(job.settings))
    if result["settings"] != wanted:
        differing = [key for key in wanted if result["settings"].get(key) != wanted[key]]
        raise CheckpointError(
            f"evidence: {root / job.name} was made with other settings ({', '.join(differing)}); give "
            "another --output, or delete the folder"
        )
    return True


def work_off(root: Path, jobs: Sequence[Job], say: Say) -> list[str]:
    """Do the jobs in order, leaving those that another process holds; return when none is left.

    Args:
        root: Output folder.
        jobs: In order of importance; what a job needs comes before it.
        say: Takes a line per job.

    Returns:
        Names of the jobs that failed here, and of those that need one of them.
    """
    failed: list[str] = []
    while True:
        failed += [job.name for job in jobs if set(job.needs) & set(failed) and job.name not in failed]
        left = [job for job in jobs if job.name not in failed and not is_done(root, job)]
        if not left:
            return failed
        for job in _ready(root, left):
            try:
                has_worked = _try(root, job, say)
            except SodError as error:
                # One method that breaks must not take the others with it.
                say(f"{job.name}: failed: {error}")
                failed.append(job.name)
                break
            # After each job from the top again: what matters more may have become possible.
            if has_worked:
                break
        else:
            time.sleep(_POLL_S)


def _ready(root: Path, left: Sequence[Job]) -> Iterator[Job]:
    """The jobs whose needs are met, in order."""
    for job in left:
        if all(read_result(root, name) is not None for name in job.needs):
            yield job


def _try(root: Path, job: Job, say: Say) -> bool:
    folder = root / job.name
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder) as is_ours:
        if not is_ours or is_done(root, job):
            return False
        say(f"{time.strftime('%H:%M:%S')} {job.name}")
        started, used = time.perf_counter(), time.process_time()
        result = dict(job.work(folder))
        result |= {
            "settings": job.settings,
            "wall_s": round(time.perf_counter() - started, 1),
            "cpu_s": round(time.process_time() - used, 1),
        }
        partial = folder / f".{RESULT}"
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / RESULT)
        say(f"{time.strftime('%H:%M:%S')} {job.name}: done in {result['cpu_s']:.0f} s of processor time")
    return True


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a job while it is worked on; a process that dies lets go."""
    with (folder / "job.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        handle.write(str(os.getpid()))
        yield True
