"""Rewards by name, and the helper process behind the mathematical one."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from sod import math_check
from sod.errors import ConfigError, DataError, SodError
from sod.math_check import MathChecker, MathPool, check_math
from sod.rewards import REWARDS, get_reward, last_boxed
from sod.types import Task


def task(answer):
    return Task(task_id="t1", messages=(), fields={} if answer is None else {"answer": answer})


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [("go", " go\n", 1.0), ("go", "Go", 0.0), ("go", "let's go", 0.0), (7, "7", 1.0), (" 7 ", "7", 1.0)],
)
def test_exact(answer, text, expected):
    assert get_reward("exact")(task(answer), text) == expected


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("42", "The answer is 42.", 1.0),
        ("42", "42 or 43", 0.0),
        ("42", "no idea", 0.0),
        ("1000", "about 1,000", 1.0),
        ("1000", "1,0000", 0.0),
        (1000, "1e3", 1.0),
        ("0.5", ".50", 1.0),
        ("-5", "minus \N{MINUS SIGN}5", 1.0),
        ("5", "3-5", 1.0),
        ("-5", "x = -5", 1.0),
        ("#### 12", "so 12.0!", 1.0),
        ("7", "version 1.2.7", 0.0),
        ("1", "1e99999999999999999999", 0.0),
        ("3", "1" * 50_000 + " 3", 1.0),
    ],
)
def test_number(answer, text, expected):
    assert get_reward("number")(task(answer), text) == expected


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("42", r"so \boxed{42}", 1.0),
        ("42", "so 42", 0.0),
        ("42", r"\boxed{41}, no, \boxed{42}", 1.0),
        ("42", r"\boxed{42}, no, \boxed{41}", 0.0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1.0),
        (r"$\boxed{\frac{1}{2}}$", r"\boxed{\dfrac12}", 1.0),
        ("1000", r"\boxed{1{,}000}", 1.0),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", 1.0),
        ("42", r"\boxed{", 0.0),
        ("42", r"\boxed{}", 0.0),
        ("42", r"\boxed{((((}", 0.0),
        (0.5, r"\boxed{\frac{1}{2}}", 1.0),
    ],
)
def test_math(answer, text, expected):
    assert get_reward("math")(task(answer), text) == expected


def test_math_works_beside_other_alarms_and_in_threads():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 30.0)
    try:
        results = []
        threads = [
            threading.Thread(target=lambda n=n: results.append((n, check_math(str(n), str(n % 2)))))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        remaining, _ = signal.getitimer(signal.ITIMER_REAL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert sorted(results) == [(0, True), (1, True), (2, False), (3, False)]
    assert remaining > 0.0
    assert rung == []


def test_a_hung_helper_is_killed_and_the_next_check_works():
    checker = MathChecker(kill_s=0.05)
    try:
        # Even this takes longer than the helper is given here.
        assert checker.check("9^9^9^9", "9^9^9^9+1") is False
    finally:
        checker.close()
    patient = MathChecker()
    try:
        assert patient.check("2", "2")
        patient._process.kill()
        patient._process.wait()
        assert patient.check("2", "2")
    finally:
        patient.close()


def test_as_many_helpers_start_as_are_busy_at_the_same_time():
    pool = MathPool(2)
    try:
        assert pool.check("1/2", "0.5")
        assert pool.check("1", "2") is False
        running = [each._process for each in pool._checkers]
        assert sum(process is not None for process in running) == 1
        # While one helper is busy, the other answers.
        busy = pool._idle.get()
        assert pool.check("3", "3")
        pool._idle.put(busy)
        assert all(each._process is not None for each in pool._checkers)
    finally:
        pool.close()
    assert all(each._process is None for each in pool._checkers)
    with pytest.raises(ValueError, match="num_processes must be 1 or more, got 0"):
        MathPool(0)


def test_a_helper_that_cannot_start_is_named(monkeypatch):
    monkeypatch.setattr(math_check.sys, "executable", "/bin/false")
    with pytest.raises(SodError, match=r"did not start .* run `/bin/false -m sod\.math_worker`"):
        MathChecker().check("1", "1")


def test_missing_math_verify_is_named(monkeypatch):
    monkeypatch.setattr(math_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "sod-kernels\[train\]"'):
        MathChecker().check("1", "1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        (r"\boxed{1} \boxed{\frac{a}{b}}", r"\frac{a}{b}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{}", ""),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_task_without_answer_is_named(name):
    with pytest.raises(DataError, match=r"task 't1' has no fields\[\"answer\"\]"):
        get_reward(name)(task(None), r"\boxed{1}")


def test_an_answer_without_number_is_named():
    with pytest.raises(DataError, match="the answer 'blue' of task 't1' holds no number"):
        get_reward("number")(task("blue"), "3")


def test_unknown_rewards_name_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown reward 'maths', .*did you mean 'math'"):
        get_reward("maths")
    with pytest.raises(ConfigError, match=r"wanted one of \['boxed', 'by_task', 'code', .*'qa_exact'\]\.$"):
        get_reward("zzz")


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("42", r"so \boxed{42}", 1.0),
        ("42", r"\boxed{ 42 }" + " and many words behind it" * 20, 1.0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 0.0),
        (r"\boxed{B}", r"\boxed{B}", 1.0),
        ("42", r"\boxed{41} \boxed{42}", 1.0),
        ("42", "42", 0.0),
    ],
)
def test_boxed(answer, text, expected):
    assert get_reward("boxed")(task(answer), text) == expected


@pytest.mark.parametrize(
    ("answer", "text", "exact_match", "overlap"),
    [
        ("The Eiffel Tower", "eiffel tower.", 1.0, 1.0),
        (["Paris", "City of Light"], "the city of light!", 1.0, 1.0),
        ("George Washington", "Washington", 0.0, 2 / 3),
        ("a b b c", "b b d", 0.0, 4 / 6),
        (["x y", "z"], "z y", 0.0, 2 / 3),
        (1945, "1945", 1.0, 1.0),
        ("Paris", "", 0.0, 0.0),
        ("The", "an", 1.0, 1.0),
        ("Paris", "London", 0.0, 0.0),
    ],
)
def test_words_against_any_of_the_answers(answer, text, exact_match, overlap):
    assert get_reward("qa_exact")(task(answer), text) == exact_match
    assert get_reward("f1")(task(answer), text) == pytest.approx(overlap)


def test_an_empty_list_of_answers_is_named():
    with pytest.raises(DataError, match=r"fields\[\"answer\"\] of task 't1' is empty; leave the task out"):
        get_reward("f1")(task([]), "x")


def test_a_reward_that_runs_programs_needs_a_sandbox():
    with pytest.raises(ConfigError, match="'code' runs programs, but sandbox is None; pass a LocalSandbox"):
        get_reward("code")


def test_very_long_texts_are_compared_as_texts_without_a_helper(monkeypatch):
    monkeypatch.setattr(math_check.sys, "executable", "/bin/false")
    long = "1+" * 5000 + "1"
    assert MathChecker().check(long, f" {long}") is True
    assert MathChecker().check(long, "5001") is False
