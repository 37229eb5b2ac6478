"""Environments are asked side by side, in the order of the rows, and not waited for for ever."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from sod.chat import ChatRenderer
from sod.engines.base import SamplingParams
from sod.engines.scripted import ScriptedEngine
from sod.envs.base import StepResult
from sod.envs.tool_env import ToolEnvironment
from sod.errors import RolloutError
from sod.rewards import get_reward
from sod.rollout.collector import collect
from sod.rollout.limits import RolloutLimits
from sod.tools import ToolRunner, ToolUnavailableError
from sod.types import Task


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return ChatRenderer(tiny_tokenizer)


def roll_out(renderer, names, factory, *, num_turns=1, said="Hm.", num_attempts=1, answers=None, **options):
    """Every attempt says the same, turn after turn."""
    tasks = [
        Task(task_id=name, messages=({"role": "user", "content": "Say."},), fields={"answer": answer})
        for name, answer in zip(names, answers or names, strict=True)
    ]
    script = [renderer._encode(said + "<|im_end|>")] * num_turns
    with ToolRunner((), num_threads=len(names)) as runner:
        made = collect(
            tasks,
            engine=ScriptedEngine([script] * (len(names) * num_attempts)),
            renderer=renderer,
            environment_factory=factory,
            limits=RolloutLimits(max_turns=num_turns, max_turn_tokens=64, max_trajectory_tokens=900),
            params=SamplingParams(max_turn_tokens=64, stop_ids=renderer.stop_ids),
            seed=0,
            runner=runner,
            max_attempts=num_attempts,
            **options,
        )
        # Whoever was left behind comes back before its test ends.
        deadline = time.monotonic() + 20
        while runner.num_abandoned_threads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert runner.num_abandoned_threads == 0
    return made


class Slow:
    """An environment that waits where `wait` says so, and tells what happened to it, where."""

    tools = ()

    def __init__(self, task, wait, log):
        self.task, self._wait, self._log = task, wait, log

    def reset(self):
        self._note("reset")
        return ({"role": "user", "content": f"I am {self.task.task_id}."},)

    def step(self, turn, results):
        self._note("step")
        return StepResult(reward=float(ord(self.task.task_id)), is_done=True, is_success=True)

    def close(self):
        self._log.append((self.task.task_id, "close", threading.current_thread().name))

    def _note(self, what):
        self._log.append((self.task.task_id, what, threading.current_thread().name))
        self._wait(self.task.task_id, what)
        self._log.append((self.task.task_id, f"{what} over", threading.current_thread().name))


def test_environments_begin_and_answer_at_the_same_time_and_in_order(renderer):
    barrier, log, ended = threading.Barrier(3, timeout=20), [], []
    is_over = {name: threading.Event() for name in "abc"}

    def wait(name, what):
        # One after the other, the first would wait for the others in vain.
        barrier.wait()
        if what == "step":
            # They answer in the opposite order.
            if name < "c":
                assert is_over[chr(ord(name) + 1)].wait(20)
            ended.append(name)
            is_over[name].set()

    made = roll_out(renderer, "abc", lambda task: Slow(task, wait, log))
    assert ended == ["c", "b", "a"]
    assert [(one.task_id, one.reward) for one in made] == [("a", 97.0), ("b", 98.0), ("c", 99.0)]
    prompts = [renderer.decode(one.turns[0].context_ids) for one in made]
    assert [f"I am {one.task_id}." in prompt for one, prompt in zip(made, prompts, strict=True)] == [True] * 3
    assert sorted(name for name, what, _ in log if what == "close") == ["a", "b", "c"]
    assert {thread for _, what, thread in log if what in ("reset", "step")} == {"sod-tool"}


@pytest.mark.parametrize("hangs_at", ["reset", "step"])
def test_an_environment_that_hangs_is_left_behind_and_attempted_again(renderer, hangs_at):
    release, log = threading.Event(), []
    hung = []

    def wait(name, what):
        if (name, what) == ("a", hangs_at):
            if not hung:
                hung.append(name)
                release.wait(20)
            else:
                # The second attempt; the first still runs.
                assert ("a", "close", "sod-tool") not in log
                release.set()

    made = roll_out(
        renderer, "ab", lambda task: Slow(task, wait, log), num_attempts=2, environment_timeout_s=0.5
    )
    assert [(one.task_id, one.reward) for one in made] == [("a", 97.0), ("b", 98.0)]
    assert hung == ["a"]
    # The one left behind is closed by its own thread when it comes back, the others where they ended.
    closed = sorted((name, thread) for name, what, thread in log if what == "close")
    assert closed == [("a", "MainThread"), ("a", "sod-tool"), ("b", "MainThread")]


def test_an_environment_that_keeps_hanging_is_named(renderer):
    release = threading.Event()

    def wait(name, what):
        if what == "step":
            release.wait(20)

    threading.Timer(1.0, release.set).start()
    with pytest.raises(
        RolloutError,
        match=r"for 1 of 1 .* in 1 attempts; .*environment of task 'a' did not answer within 0\.2 s",
    ):
        roll_out(renderer, "a", lambda task: Slow(task, wait, []), environment_timeout_s=0.2)
    release.set()


def test_an_environment_that_cannot_begin_is_attempted_again(renderer):
    failures = iter([True])

    def wait(name, what):
        if (name, what) == ("b", "reset") and next(failures, False):
            raise ToolUnavailableError("the world is down")

    log = []
    made = roll_out(renderer, "ab", lambda task: Slow(task, wait, log), num_attempts=2)
    assert [one.task_id for one in made] == ["a", "b"]
    assert sorted(name for name, what, _ in log if what == "close") == ["a", "b", "b"]

    def down(name, what):
        raise ToolUnavailableError("the world is down")

    with pytest.raises(
        RolloutError, match=r"for 2 of 2 .* in 2 attempts; it last answered 'the world is down'"
    ):
        roll_out(renderer, "ab", lambda task: Slow(task, down, []), num_attempts=2)


def test_without_a_deadline_everything_happens_in_the_threads_of_the_caller(renderer):
    log = []
    roll_out(renderer, "ab", lambda task: Slow(task, lambda *_: None, log), environment_timeout_s=None)
    asked = [(name, what) for name, what, _ in log if what in ("reset", "step")]
    assert asked == [("a", "reset"), ("b", "reset"), ("a", "step"), ("b", "step")]
    assert {thread for _, _, thread in log} == {"MainThread"}
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(
            ValueError, match=rf"collect: environment_timeout_s is {wrong}, wanted a positive"
        ):
            roll_out(renderer, "a", lambda task: Slow(task, print, []), environment_timeout_s=wrong)


def test_a_fault_of_an_environment_is_raised_when_all_have_answered(renderer):
    log = []

    def wait(name, what):
        if what == "step":
            time.sleep(0.05 * (name == "c"))
            if name != "c":
                raise KeyError(f"a bug in {name}")

    with pytest.raises(KeyError, match="a bug in a"):
        roll_out(renderer, "abc", lambda task: Slow(task, wait, log))
    assert ("c", "step over", "sod-tool") in log
    assert sorted(name for name, what, _ in log if what == "close") == ["a", "b", "c"]


@pytest.mark.no_cover
def test_mathematics_of_many_attempts_is_checked_side_by_side(renderer):
    factory = partial(ToolEnvironment, tools=(), reward=get_reward("math"))
    answers = ["1/2", "2", "0.5", "1", "5/10", r"\frac{1}{2}", "7", "50\\%"]
    made = roll_out(renderer, "abcdefgh", factory, said=r"So it is \boxed{0.5}.", answers=answers)
    assert [one.is_success for one in made] == [True, False, True, False, True, True, False, True]
