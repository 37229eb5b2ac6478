"""The pool: many callers, workers that die, and what is left when the sandbox is closed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from sod.sandbox import LocalSandbox, worker
from sod.types import ToolOutcome

pytestmark = pytest.mark.sandbox


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_many_threads_share_few_workers_and_get_their_own_answers():
    with LocalSandbox(num_workers=2) as sandbox, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: sandbox.run(f"print(input(), {i})", stdin=f"in{i}"), range(80)))
    assert [result.stdout for result in results] == [f"in{i} {i}\n" for i in range(80)]


def test_workers_run_at_the_same_time():
    with LocalSandbox(num_workers=2) as sandbox, ThreadPoolExecutor(2) as pool:
        code = "import time\nprint(time.monotonic())\ntime.sleep(1)\nprint(time.monotonic())"
        spans = [[float(x) for x in r.stdout.split()] for r in pool.map(sandbox.run, [code, code])]
    assert max(start for start, _ in spans) < min(end for _, end in spans)


def test_worker_killed_between_calls_is_replaced_and_the_call_made():
    with LocalSandbox(num_workers=1) as sandbox:
        (pid,) = sandbox.worker_pids
        os.kill(pid, signal.SIGKILL)
        assert sandbox.run("print(1)").stdout == "1\n"
        assert sandbox.worker_pids != (pid,)


def test_worker_killed_under_the_code_is_told_and_replaced():
    with LocalSandbox(num_workers=1) as sandbox, ThreadPoolExecutor(1) as pool:
        (pid,) = sandbox.worker_pids
        call = pool.submit(sandbox.run, "import time\ntime.sleep(60)", timeout_s=60.0)
        wait_until(lambda: psutil.Process(pid).children())
        (code,) = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        result = call.result(timeout=30)
        assert result.outcome is ToolOutcome.KILLED
        assert result.stderr == "the sandbox worker was lost: it was killed"
        wait_until(lambda: not code.is_running())
        assert sandbox.run("print(1)").stdout == "1\n"


def test_interrupted_call_does_not_answer_the_next_one():
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with LocalSandbox(num_workers=1) as sandbox:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                sandbox.run("import time\ntime.sleep(1)\nprint('of the first')", timeout_s=30.0)
            assert sandbox.run("print('of the second')").stdout == "of the second\n"
            assert len(sandbox.worker_pids) == 1
    finally:
        signal.signal(signal.SIGALRM, before)


def test_worker_that_does_not_keep_the_deadline_is_killed(monkeypatch):
    monkeypatch.setattr(worker, "_GRACE_S", 0.3)
    with LocalSandbox(num_workers=1) as sandbox:
        (pid,) = sandbox.worker_pids
        os.kill(pid, signal.SIGSTOP)
        # It has not begun: made again on a new worker.
        assert sandbox.run("print(1)", timeout_s=0.2).stdout == "1\n"
        assert not psutil.pid_exists(pid)

        (pid,) = sandbox.worker_pids
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(sandbox.run, "import time\ntime.sleep(60)", timeout_s=2.0)
            wait_until(lambda: psutil.Process(pid).children())
            os.kill(pid, signal.SIGSTOP)
            assert call.result(timeout=30).outcome is ToolOutcome.TIMEOUT
        assert sandbox.run("print(2)").stdout == "2\n"


def test_machine_that_cannot_start_another_worker_is_told_as_unavailable(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    real = shutil.which("bwrap")
    stop = f"if test -e {tmp_path}/broken; then echo 'bwrap: no luck' >&2; exit 1; fi"
    fake.write_text(f'#!/bin/sh\n{stop}\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with LocalSandbox(num_workers=1) as sandbox:
        (tmp_path / "broken").touch()
        os.kill(sandbox.worker_pids[0], signal.SIGKILL)
        result = sandbox.run("print(1)")
        assert (result.outcome, result.exit_code) == (ToolOutcome.UNAVAILABLE, None)
        assert "bwrap: no luck" in result.stderr
        (tmp_path / "broken").unlink()
        assert sandbox.run("print(1)").stdout == "1\n"


def test_close_leaves_no_process_thread_or_descriptor():
    before = children(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    sandbox = LocalSandbox(num_workers=2)
    assert len(sandbox.worker_pids) == 2
    for _ in range(3):
        sandbox.run("print(1)")
    sandbox.run("while True: pass", timeout_s=0.2)
    pids = children() - before[0]
    assert len(pids) >= 4
    sandbox.close()
    sandbox.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert (children(), threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_close_ends_calls_under_way_and_those_that_wait():
    sandbox = LocalSandbox(num_workers=1)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(sandbox.run, "import time\ntime.sleep(60)", timeout_s=60.0) for _ in range(3)]
        (pid,) = sandbox.worker_pids
        wait_until(lambda: psutil.Process(pid).children())
        sandbox.close()
        outcomes = sorted(call.result(timeout=30).outcome for call in calls)
    assert outcomes == [ToolOutcome.KILLED, ToolOutcome.UNAVAILABLE, ToolOutcome.UNAVAILABLE]
    with pytest.raises(ValueError, match=r"LocalSandbox\.run: the sandbox is closed\. Make a new one\."):
        sandbox.run("1")


def test_workers_die_with_a_host_that_is_killed():
    program = (
        "import sys, threading\nfrom sod.sandbox import LocalSandbox\nsandbox = LocalSandbox(num_workers=1)\n"
        "threading.Thread(target=sandbox.run, args=('while True: pass',), kwargs={'timeout_s': 60}).start()\n"
        "print(*sandbox.worker_pids, flush=True)\nsys.stdin.read()"
    )
    root = str(Path(__file__).parents[2])
    host = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True
    )
    with host:
        pid = int(host.stdout.readline())
        wait_until(lambda: psutil.Process(pid).children())
        left = [psutil.Process(pid), *psutil.Process(pid).children()]
        host.kill()
    wait_until(lambda: not any(process.is_running() for process in left))


def test_fork_server_is_closed_to_other_processes_of_its_user():
    with LocalSandbox(num_workers=1) as sandbox:
        (pid,) = sandbox.worker_pids
        # A process that is not dumpable shows its /proc entries as root's.
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        capabilities = int(status.split("CapEff:\t")[1].split()[0], 16)
        # Changing uid and gid, signalling and cleaning up after that uid; nothing for an ordinary user.
        assert capabilities in ((1 << 6 | 1 << 7 | 1 << 5 | 1 << 1 | 1 << 3), 0)
        assert (capabilities == 0) == (os.geteuid() != 0)
