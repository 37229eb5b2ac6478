"""Sessions: state kept within one, nothing beyond it, and what happens when one is lost."""

import os
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from sod.sandbox import LocalSandbox, SandboxResult, session
from sod.types import ToolOutcome

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def sandbox():
    with LocalSandbox(num_workers=1, memory_bytes=256 << 20) as sandbox:
        yield sandbox


@pytest.fixture
def kept(sandbox):
    with sandbox.session() as kept:
        yield kept


def shown(kept, code: str, **options) -> str:
    result = kept.run(code, **options)
    assert (result.outcome, result.stderr, result.is_state_lost) == (ToolOutcome.OK, "", False), result
    return result.stdout


def test_variables_modules_and_files_are_kept(kept):
    assert shown(kept, "import math\nx = 20\ndef f(): return x + 1\nopen('note', 'w').write('kept')") == "4\n"
    assert shown(kept, "x = 41") == ""
    assert shown(kept, "print(open('note').read())\nf(), math.floor(2.5)") == "kept\n(42, 2)\n"
    assert shown(kept, "_") == "(42, 2)\n"


def test_result_is_what_one_call_did(kept):
    result = kept.run("print('a')\n1 + 1")
    assert result == SandboxResult(
        outcome=ToolOutcome.OK,
        stdout="a\n2\n",
        stderr="",
        exit_code=0,
        seconds=result.seconds,
        truncated=False,
    )
    assert 0 < result.seconds < 10
    assert shown(kept, "import sys\nsys.stdin.read()", stdin="ä\n1") == "'ä\\n1'\n"
    assert shown(kept, "sys.stdin.read()") == "''\n"


def test_errors_keep_the_state_and_show_the_lines_of_their_own_piece(kept):
    shown(kept, "x = 7\ndef divide(by):\n    return x / by")
    result = kept.run("# second\ndivide(0)")
    assert (result.outcome, result.exit_code, result.is_state_lost) == (ToolOutcome.TOOL_ERROR, 1, False)
    assert result.stderr == (
        "Traceback (most recent call last):\n"
        '  File "<code 2>", line 2, in <module>\n    divide(0)\n'
        '  File "<code>", line 3, in divide\n    return x / by\n           ~~^~~~\n'
        "ZeroDivisionError: division by zero\n"
    )
    assert kept.run("import sys; sys.exit(3)").exit_code == 3
    assert kept.run("x = (").outcome is ToolOutcome.TOOL_ERROR
    assert shown(kept, "x") == "7\n"


def test_streams_that_the_code_closed_or_replaced_are_back_in_the_next_call(kept):
    assert shown(kept, "import sys, io\nsys.stdout.close()") == ""
    assert shown(kept, "print(1)") == "1\n"
    assert shown(kept, "sys.stdout = io.StringIO()\nprint('away')") == ""
    assert shown(kept, "print(2)\nprint(3, end='')") == "2\n3"
    assert shown(kept, "sys.stdout = None\nsys.stderr = 5") == ""
    assert shown(kept, "print(4)") == "4\n"


def test_another_session_and_a_plain_call_see_nothing_of_it(sandbox, kept):
    shown(kept, "secret = 'x'\nopen('/tmp/secret', 'w').write(secret)")
    look = "import os\n'secret' in globals(), os.listdir('/tmp'), os.listdir('/work')"
    with sandbox.session() as other:
        assert shown(other, look) == "(False, [], [])\n"
    assert sandbox.run(look).stdout == "(False, [], [])\n"
    assert shown(kept, "secret") == "'x'\n"


def test_worker_of_a_session_that_ended_is_wiped_and_taken_by_the_next():
    with LocalSandbox(num_workers=1) as sandbox:
        pool = set(sandbox.worker_pids)
        seen = []
        for _ in range(3):
            with sandbox.session() as kept:
                assert shown(kept, "import os\nos.listdir(), 'x' in globals()") == "([], False)\n"
                shown(kept, "x = 1\nopen('left', 'w').close()")
                seen.append(set(sandbox.worker_pids) - pool)
        assert len(seen[0]) == 1
        assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
def test_deadline_ends_the_interpreter_and_the_next_call_begins_anew(kept, code):
    shown(kept, "x = 1\nopen('file', 'w').close()")
    result = kept.run("print('before')\n" + code, timeout_s=0.4)
    assert (result.outcome, result.stdout, result.is_state_lost) == (ToolOutcome.TIMEOUT, "before\n", True)
    assert 0.4 <= result.seconds < 10
    assert shown(kept, "import os\n'x' in globals(), os.listdir()") == "(False, [])\n"


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("import os; os._exit(5)", 5, ""),
        ("bytearray(10 << 30)", -signal.SIGKILL, "MemoryError: the code went over its memory limit\n"),
        (
            "import sys\nwhile True: sys.stdout.write('x' * 65536)",
            -signal.SIGKILL,
            "the interpreter was stopped: its output had no end",
        ),
    ],
)
def test_code_that_ends_the_interpreter_is_told_and_the_next_begins_anew(kept, code, exit_code, stderr):
    shown(kept, "x = 1")
    result = kept.run(code, timeout_s=60.0)
    assert (result.outcome, result.is_state_lost) == (ToolOutcome.KILLED, True)
    assert (result.exit_code, result.stderr) == (exit_code, stderr)
    assert shown(kept, "'x' in globals()") == "False\n"


def test_threads_run_only_while_a_call_does(kept):
    shown(
        kept,
        "import threading, time\nticks = [0]\n"
        "def tick():\n    while True:\n        ticks[0] += 1\n        time.sleep(0.001)\n"
        "threading.Thread(target=tick, daemon=True).start()\ntime.sleep(0.05)",
    )
    before = int(shown(kept, "ticks[0]"))
    time.sleep(0.5)
    assert int(shown(kept, "ticks[0]")) - before < 100
    assert int(shown(kept, "time.sleep(0.3)\nticks[0]")) - before > 20


def test_answer_that_the_code_makes_up_is_none(kept):
    # Three is the descriptor on which the interpreter answers.
    assert shown(kept, "import os, time\nos.write(3, bytes(100))\ntime.sleep(0.2)\nprint('end')") == "end\n"
    assert shown(kept, "'own'") == "'own'\n"
    assert kept.run("os.write(3, bytes(70_000))").outcome is ToolOutcome.KILLED
    assert kept.run("import os\nos.close(3)").outcome is ToolOutcome.KILLED
    assert kept.run("import os\nos.read(3, 10)", timeout_s=0.3).outcome is ToolOutcome.TIMEOUT


def test_large_input_and_output_pass(kept):
    text = "x" * (6 << 20)
    assert shown(kept, f"data = '{text}'\nlen(data)") == f"{6 << 20}\n"
    assert shown(kept, "import sys\nlen(sys.stdin.read())", stdin=text) == f"{6 << 20}\n"
    result = kept.run("print('y' * 200_000)")
    assert result.truncated
    assert len(result.stdout) < 70_000


def test_fork_server_killed_under_a_call_or_between_two():
    with LocalSandbox(num_workers=1) as sandbox, ThreadPoolExecutor(1) as pool:
        (of_calls,) = sandbox.worker_pids
        with sandbox.session() as kept:
            shown(kept, "x = 1")
            (pid,) = set(sandbox.worker_pids) - {of_calls}
            call = pool.submit(kept.run, "import time\ntime.sleep(60)", timeout_s=60.0)
            time.sleep(0.2)
            os.kill(pid, signal.SIGKILL)
            result = call.result(timeout=30)
            assert (result.outcome, result.is_state_lost) == (ToolOutcome.KILLED, True)
            assert result.stderr == "the sandbox worker was lost: it was killed"
            assert shown(kept, "'x' in globals()") == "False\n"

            (pid,) = set(sandbox.worker_pids) - {of_calls}
            os.kill(pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
            result = kept.run("1")
            assert (result.outcome, result.is_state_lost) == (ToolOutcome.KILLED, True)
            assert shown(kept, "1") == "1\n"
        # An idle one that died is replaced before anything runs.
        (pid,) = set(sandbox.worker_pids) - {of_calls}
        os.kill(pid, signal.SIGKILL)
        with sandbox.session() as kept:
            assert shown(kept, "2") == "2\n"


def test_interrupted_call_does_not_answer_the_next_one():
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with LocalSandbox(num_workers=1) as sandbox, sandbox.session() as kept:
            shown(kept, "1")
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                kept.run("import time\ntime.sleep(1)\nprint('of the first')", timeout_s=30.0)
            assert shown(kept, "print('of the second')") == "of the second\n"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_close_of_the_sandbox_ends_sessions_and_leaves_no_process_or_descriptor():
    def state():
        children = {child.pid for child in psutil.Process().children(recursive=True)}
        return children, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    before = state()
    sandbox = LocalSandbox(num_workers=1)
    first, second = sandbox.session(), sandbox.session()
    with ThreadPoolExecutor(1) as pool:
        shown(first, "x = 1")
        shown(second, "x = 2")
        call = pool.submit(second.run, "import time\ntime.sleep(60)", timeout_s=60.0)
        time.sleep(0.3)
        sandbox.close()
        assert call.result(timeout=30).outcome is ToolOutcome.KILLED
    assert state() == before
    for closed in (first, second):
        with pytest.raises(
            ValueError, match=r"SandboxSession\.run: the session is closed\. Make a new one\."
        ):
            closed.run("1")
        closed.close()
    with pytest.raises(ValueError, match=r"LocalSandbox\.session: the sandbox is closed\. Make a new one\."):
        sandbox.session()


def test_machine_that_cannot_start_a_worker_is_told_as_unavailable(monkeypatch, tmp_path):
    with LocalSandbox(num_workers=1) as sandbox, sandbox.session() as kept:
        monkeypatch.setattr(
            sandbox,
            "_settings",
            type(sandbox._settings)(**{**vars(sandbox._settings), "bubblewrap": "/none"}),
        )
        result = kept.run("1")
    assert (result.outcome, result.is_state_lost) == (ToolOutcome.UNAVAILABLE, False)
    assert "the sandbox does not start" in result.stderr


def test_process_without_descriptors_is_told_as_unavailable_and_what_to_do():
    with LocalSandbox(num_workers=1) as sandbox, sandbox.session() as first, sandbox.session() as kept:
        shown(kept, "x = 1")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            new, old = first.run("1"), kept.run("x")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (new.outcome, old.outcome) == (ToolOutcome.UNAVAILABLE, ToolOutcome.UNAVAILABLE)
        assert "Too many open files" in new.stderr
        assert "raise the limit, `ulimit -n 65536`" in new.stderr
        assert "Too many open files" in old.stderr
        assert old.is_state_lost
        assert shown(first, "1") == shown(kept, "1") == "1\n"


def test_worker_that_is_lost_again_and_again_before_it_begins_is_unavailable(monkeypatch):
    def lose(worker, max_output_bytes):
        raise worker._lost(has_started=False, reason="gone")

    with LocalSandbox(num_workers=1) as sandbox, sandbox.session() as kept:
        monkeypatch.setattr(session, "Interpreter", lose)
        result = kept.run("1")
    assert result.outcome is ToolOutcome.UNAVAILABLE
    assert result.stderr == "SandboxSession: the sandbox worker was lost twice: gone"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((b"1",), TypeError, r"SandboxSession\.run: code is bytes, wanted str"),
        (("1", "", 0.0), ValueError, r"SandboxSession\.run: timeout_s is 0\.0, wanted above 0"),
    ],
)
def test_arguments_that_are_none_are_refused(kept, arguments, error, message):
    with pytest.raises(error, match=message):
        kept.run(*arguments)


def test_input_that_is_too_long_is_told_to_the_model(kept):
    result = kept.run("#" * ((8 << 20) + 1))
    assert result.outcome is ToolOutcome.TOOL_ERROR
    assert "code has 8388609 bytes; at most 8388608 are accepted" in result.stderr
