"""The runner: every way a call can end, in order, in time, and for many trajectories at once."""

import asyncio
import os
import shutil
import signal
import sys
import threading
import time

import pytest

from sod.errors import ToolDefinitionError
from sod.sandbox import LocalSandbox
from sod.tools import ParseFailure, ToolRunner, ToolUnavailableError, python_tool, tool
from sod.types import ToolCall, ToolOutcome, ToolResult


@tool
def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: One.
        b: Other.
    """
    return a + b


@tool
async def add_later(a: int, seconds: float) -> int:
    """Adds one, later.

    Args:
        a: One.
        seconds: How long to wait.
    """
    await asyncio.sleep(seconds)
    return a + 1


@tool
def fail(kind: str):
    """Fails.

    Args:
        kind: How.
    """
    if kind == "exit":
        sys.exit("gone")
    if kind == "down":
        raise ToolUnavailableError("the service does not answer")
    if kind == "cancelled":
        raise asyncio.CancelledError("stopped")
    if kind == "broken":

        class BrokenError(Exception):
            def __str__(self):
                raise RuntimeError

        raise BrokenError
    raise KeyError(kind)


@tool
def say(text: str) -> str:
    """Says it.

    Args:
        text: What.
    """
    return text


def call(name: str, /, **arguments) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


@pytest.fixture
def runner():
    with ToolRunner(
        [add, add_later, fail, say], timeout_s=20.0, max_output_chars=200, num_threads=4
    ) as runner:
        yield runner


def outcome_and_text(results) -> list[tuple[ToolOutcome, str]]:
    return [(result.outcome, result.text) for result in results]


def test_every_way_a_call_can_end_in_the_order_of_the_calls(runner):
    results = runner.run(
        [
            call("add", a=1, b=2),
            call("add_later", a=1, seconds=0),
            ParseFailure(text="{'a'", reason="expected a double quote at character 1."),
            call("ad", a=1, b=2),
            call("nothing_like_it"),
            call("add", a=1),
            call("fail", kind="key"),
            call("fail", kind="exit"),
            call("fail", kind="cancelled"),
            call("fail", kind="broken"),
            call("fail", kind="down"),
            call("say", text=""),
        ]
    )
    assert outcome_and_text(results) == [
        (ToolOutcome.OK, "3"),
        (ToolOutcome.OK, "2"),
        (
            ToolOutcome.INVALID_JSON,
            "The tool call could not be read: expected a double quote at character 1.",
        ),
        (
            ToolOutcome.UNKNOWN_TOOL,
            "There is no tool named ad. Did you mean add? Available: add, add_later, fail, say.",
        ),
        (
            ToolOutcome.UNKNOWN_TOOL,
            "There is no tool named nothing_like_it. Available: add, add_later, fail, say.",
        ),
        (
            ToolOutcome.BAD_ARGS,
            "Argument `b` is missing; wanted integer. "
            "The arguments are `a` (integer, required), `b` (integer, required).",
        ),
        (ToolOutcome.TOOL_ERROR, "KeyError: 'key'"),
        (ToolOutcome.TOOL_ERROR, "SystemExit: gone"),
        (ToolOutcome.TOOL_ERROR, "CancelledError: stopped"),
        (ToolOutcome.TOOL_ERROR, "BrokenError"),
        (ToolOutcome.UNAVAILABLE, "the service does not answer"),
        (ToolOutcome.OK, ""),
    ]
    names = ["add", "add_later", "", "ad", "nothing_like_it", "add", *["fail"] * 5, "say"]
    assert [result.name for result in results] == names
    assert all(0 <= result.seconds < 20 for result in results)


def test_nothing_asked_is_nothing_answered(runner):
    assert runner.run([]) == ()
    assert runner.run_batch([]) == []
    assert runner.run_batch([[], [call("add", a=1, b=1)], []])[1][0].text == "2"


def test_unknown_tool_without_any_tools():
    with ToolRunner([]) as runner:
        assert runner.run([call("x")])[0].text == "There is no tool named x; no tools are available."


def test_trajectories_can_bring_their_own_tools(runner):
    def counter(start: int):
        count = start

        def step() -> int:
            """Counts."""
            nonlocal count
            count += 1
            return count

        return [tool(step)]

    batch = [[call("step"), call("step")], [call("step"), call("add", a=1, b=1)], [call("add", a=1, b=1)]]
    results = runner.run_batch(batch, tools=[counter(0), counter(10), [add]])
    assert [[result.text for result in one] for one in results] == [
        ["1", "2"],
        ["11", "There is no tool named add. Available: step."],
        ["2"],
    ]
    with pytest.raises(ValueError, match=r"run_batch: tools has 1 entries for 2 trajectories, wanted one"):
        runner.run_batch([[], []], tools=[[]])
    with pytest.raises(ToolDefinitionError, match="two tools are named add"):
        runner.run_batch([[]], tools=[[add, add]])


def test_result_that_is_no_result_is_raised_and_hangs_nobody():
    @tool
    def lie() -> ToolResult:
        """Returns a result without text."""
        return ToolResult(name="lie", outcome=ToolOutcome.OK, text=None)

    with ToolRunner([lie, add], num_threads=1) as runner:
        with pytest.raises(AttributeError, match="encode"):
            runner.run_batch([[call("add", a=1, b=1)], [call("lie"), call("add", a=1, b=1)]])
        assert runner.run([call("add", a=1, b=1)])[0].text == "2"


def test_long_output_is_cut_in_the_middle(runner):
    (result,) = runner.run([call("say", text="a" * 500 + "z" * 500)])
    assert len(result.text) <= 200
    assert result.text.startswith("aaa")
    assert result.text.endswith("zzz")
    assert "characters dropped" in result.text


def test_half_a_surrogate_pair_does_not_reach_the_tokenizer(runner):
    assert runner.run([call("say", text="a\ud800b\U0001f600")])[0].text == "a?b\U0001f600"


def test_tool_result_keeps_its_outcome_and_text():
    @tool
    def judge() -> ToolResult:
        """Judges."""
        return ToolResult(name="other", outcome=ToolOutcome.KILLED, text="t", seconds=99.0)

    with ToolRunner([judge]) as runner:
        (result,) = runner.run([call("judge")])
    assert (result.name, result.outcome, result.text) == ("judge", ToolOutcome.KILLED, "t")
    assert result.seconds < 20


def test_trajectories_run_at_the_same_time_and_their_own_calls_in_order():
    barrier = threading.Barrier(3, timeout=20)
    seen = {name: [] for name in "abc"}

    @tool
    def meet(name: str, number: int) -> str:
        """Meets the others.

        Args:
            name: Who.
            number: Which call.
        """
        barrier.wait()
        seen[name].append(number)
        return f"{name}{number}"

    with ToolRunner([meet], num_threads=3) as runner:
        batch = [[call("meet", name=name, number=number) for number in range(4)] for name in "abc"]
        results = runner.run_batch(batch)
    assert [[r.text for r in one] for one in results] == [[f"{n}{i}" for i in range(4)] for n in "abc"]
    assert seen == {name: [0, 1, 2, 3] for name in "abc"}


def test_no_more_calls_run_at_once_than_threads_allow():
    lock, running, most = threading.Lock(), 0, 0

    @tool
    def work():
        """Works."""
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    with ToolRunner([work], num_threads=2) as runner:
        runner.run_batch([[call("work")] for _ in range(12)])
    assert most == 2


def test_hung_tool_is_left_behind_and_its_trajectory_goes_on():
    release, late = threading.Event(), []

    @tool
    def hang() -> str:
        """Hangs."""
        release.wait()
        late.append(1)
        return "too late"

    with ToolRunner([hang, add], timeout_s=0.3, num_threads=1) as runner:
        batch = [[call("hang"), call("add", a=1, b=1), call("hang")], [call("add", a=2, b=2)]]
        first, second = runner.run_batch(batch)
        stopped = (ToolOutcome.TIMEOUT, "The call was stopped: hang ran longer than 0.3 seconds.")
        assert outcome_and_text(first) == [stopped, (ToolOutcome.OK, "2"), stopped]
        assert outcome_and_text(second) == [(ToolOutcome.OK, "4")]
        assert 0.3 <= first[0].seconds < 10
        assert runner.num_abandoned_threads == 2
        release.set()
        deadline = time.monotonic() + 20
        while runner.num_abandoned_threads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert runner.num_abandoned_threads == 0
        assert len(late) == 2
        assert [result.text for result in first] == [stopped[1], "2", stopped[1]]
        assert runner.run([call("add", a=3, b=3)])[0].text == "6"


def test_async_tool_is_cancelled_and_its_thread_kept():
    cancelled = []

    @tool
    async def dream():
        """Dreams."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with ToolRunner([dream], timeout_s=0.2, num_threads=1) as runner:
        (result,) = runner.run([call("dream")])
        assert (result.outcome, result.name) == (ToolOutcome.TIMEOUT, "dream")
        assert cancelled == [True]
        assert runner.num_abandoned_threads == 0


def test_time_out_that_a_tool_raises_itself_is_its_error():
    @tool
    async def ask():
        """Asks."""
        raise TimeoutError("the server is slow")

    with ToolRunner([ask]) as runner:
        assert outcome_and_text(runner.run([call("ask")])) == [
            (ToolOutcome.TOOL_ERROR, "TimeoutError: the server is slow")
        ]


def test_close_ends_the_threads():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "sod-tool"]

    deadline = time.monotonic() + 20
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    runner = ToolRunner([add], num_threads=3)
    assert len(threads()) == 3
    runner.close()
    runner.close()
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []
    with pytest.raises(ValueError, match=r"ToolRunner: the runner is closed\. Make a new one\."):
        runner.run([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0.0}, "timeout_s is 0.0, wanted a positive number of seconds"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"max_output_chars": 10}, "max_output_chars is 10, wanted at least 64"),
        ({"num_threads": 0}, "num_threads is 0, wanted at least 1"),
    ],
)
def test_number_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=f"ToolRunner: {message}"):
        ToolRunner([add], **options)


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ToolDefinitionError, match=r"ToolRunner: two tools are named add, .* Rename one\."):
        ToolRunner([add, add])


@pytest.mark.sandbox
def test_python_tool_shows_output_and_errors():
    with LocalSandbox(num_workers=2) as sandbox:
        made = python_tool(sandbox, timeout_s=1.0)
        with ToolRunner([made], timeout_s=0.001, num_threads=4) as runner:
            codes = [
                "print('a')\n1 + 1",
                "x = 1",
                "import sys; print('note', file=sys.stderr)",
                "print('a')\n1 / 0",
                "import sys; sys.exit(4)",
                "print('a', flush=True)\nwhile True: pass",
                "import os; os.abort()",
                "bytearray(10 << 30)",
            ]
            results = [one[0] for one in runner.run_batch([[call("python", code=code)] for code in codes])]
    assert outcome_and_text(results) == [
        (ToolOutcome.OK, "a\n2\n"),
        (ToolOutcome.OK, "(no output)"),
        (ToolOutcome.OK, "note\n"),
        (
            ToolOutcome.TOOL_ERROR,
            'a\nTraceback (most recent call last):\n  File "<code>", line 2, in <module>\n    1 / 0\n'
            "    ~~^~~\nZeroDivisionError: division by zero",
        ),
        (ToolOutcome.TOOL_ERROR, "The code ended with exit code 4."),
        (ToolOutcome.TIMEOUT, "a\nThe code was stopped: it ran longer than 1 seconds."),
        (ToolOutcome.KILLED, "The code was killed by SIGABRT."),
        (
            ToolOutcome.KILLED,
            "MemoryError: the code went over its memory limit\nThe code was killed by SIGKILL.",
        ),
    ]
    assert [result.name for result in results] == ["python"] * 8
    assert made.schema["function"]["parameters"]["required"] == ["code"]


@pytest.mark.sandbox
def test_python_tool_waits_for_a_free_worker_without_a_time_out():
    with (
        LocalSandbox(num_workers=1) as sandbox,
        ToolRunner([python_tool(sandbox, timeout_s=5.0)], timeout_s=0.001, num_threads=6) as runner,
    ):
        batch = [[call("python", code=f"import time; time.sleep(0.1); {i}")] for i in range(6)]
        texts = [one[0].text for one in runner.run_batch(batch)]
    assert texts == [f"{i}\n" for i in range(6)]


@pytest.mark.sandbox
def test_python_tool_of_a_sandbox_that_is_down_is_unavailable(monkeypatch, tmp_path):
    bubblewrap = tmp_path / "bwrap"
    bubblewrap.symlink_to(shutil.which("bwrap"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with LocalSandbox(num_workers=1) as sandbox, ToolRunner([python_tool(sandbox)]) as runner:
        bubblewrap.unlink()
        os.kill(sandbox.worker_pids[0], signal.SIGKILL)
        (result,) = runner.run([call("python", code="1")])
    assert result.outcome is ToolOutcome.UNAVAILABLE
    assert "the sandbox does not start: [Errno 2] No such file or directory" in result.text
