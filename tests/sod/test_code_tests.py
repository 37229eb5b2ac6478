"""Programs against tests: reading the tests, finding the program, judging it in the real sandbox."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import signal
import zlib

import pytest

from sod.code_tests import CodeTest, CodeTests, last_program, parse_code_tests, same_output
from sod.errors import DataError
from sod.rewards import get_reward
from sod.sandbox import LocalSandbox
from sod.tools import ToolUnavailableError
from sod.types import Task

DOUBLE = "print(int(input()) * 2)"
STDIN_TESTS = {"inputs": ["1\n", "5\n", "-2\n"], "outputs": ["2\n", "10", "-4\n"]}
CASES = [
    {"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"},
    {"input": "[]\n3", "output": "[]", "testtype": "functional"},
]
ADD_TO_ALL = """class Solution:
    def add_to_all(self, numbers: List[int], amount: int) -> List[int]:
        print("a note")
        return tuple(number + amount for number in numbers)

if __name__ == "__main__":
    raise SystemExit("must not run")
"""


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nDone."


def packed(cases) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def livecodebench(**more):
    return {
        "public_test_cases": json.dumps(CASES[:1]),
        "private_test_cases": packed(CASES[1:]),
        "metadata": json.dumps({"func_name": "add_to_all"}),
        **more,
    }


WANTED_FUNCTIONAL = CodeTests(
    function_name="add_to_all",
    tests=(CodeTest(arguments=([1, 2], 3), wanted=[4, 5]), CodeTest(arguments=([], 3), wanted=[])),
)
WANTED_STDIN = CodeTests(
    tests=tuple(
        CodeTest(stdin=given, wanted=wanted)
        for given, wanted in zip(STDIN_TESTS["inputs"], STDIN_TESTS["outputs"], strict=True)
    )
)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (STDIN_TESTS, WANTED_STDIN),
        (json.dumps(STDIN_TESTS), WANTED_STDIN),
        ({"ground_truth": json.dumps(STDIN_TESTS)}, WANTED_STDIN),
        (
            {"inputs": [["1", "2"]], "outputs": [3]},
            CodeTests(tests=(CodeTest(stdin="1\n2", wanted="3"),)),
        ),
        (
            {"inputs": [[[1, 2], 3], "[]\n3"], "outputs": [[[4, 5]], "[]"], "fn_name": "add_to_all"},
            WANTED_FUNCTIONAL,
        ),
        (livecodebench(), WANTED_FUNCTIONAL),
        (
            [{"input": "1", "output": "2", "testtype": "stdin"}],
            CodeTests(tests=(CodeTest(stdin="1", wanted="2"),)),
        ),
        (
            {"public_test_cases": [{"input": "1", "output": "2"}]},
            CodeTests(tests=(CodeTest(stdin="1", wanted="2"),)),
        ),
    ],
)
def test_tests_are_read_in_the_forms_of_the_data_sets(value, wanted):
    assert parse_code_tests(value, "task 'x'") == wanted


class Harm:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no json", "cannot be read"),
        (7, r"TypeError: got int"),
        ({"inputs": ["1"], "outputs": []}, "ValueError"),
        (livecodebench(metadata="{}"), "KeyError: 'func_name'"),
        ([*CASES, {"input": "", "output": ""}], r"ValueError: test types \['functional', 'stdin'\]"),
        (livecodebench(private_test_cases=packed(1)[:-8]), "cannot be read"),
        (
            base64.b64encode(zlib.compress(pickle.dumps(Harm()))).decode(),
            r"UnpicklingError: (posix|nt)\.system is no text",
        ),
        ({"inputs": [], "outputs": []}, "task 'x' has no tests; leave the task out"),
    ],
)
def test_tests_that_cannot_be_read_are_named(value, reason):
    with pytest.raises(DataError, match=rf'reward "code": .*{reason}'):
        parse_code_tests(value, "task 'x'")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("no fence", None),
        (fenced("x = 1"), "x = 1\n"),
        (fenced("x = 1") + fenced("x = 2"), "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", None),
        (fenced("x = ("), None),
        (fenced("x = '\0'"), None),
    ],
)
def test_last_program(text, program):
    assert last_program(text) == program


@pytest.mark.parametrize(
    ("printed", "wanted", "is_same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("  1 2  \n\n", "1 2", True),
        ("1.0 2", "1 2.00", True),
        ("1 2 3", "1 2", False),
        ("1\n2", "1 2", False),
        ("a 1.0", "a 1", False),
        ("", "1", False),
        ("nan", "nan", True),
    ],
)
def test_same_output(printed, wanted, is_same):
    assert same_output(printed, wanted) is is_same


def task(answer):
    return Task(task_id="t1", messages=(), fields={"answer": answer})


@pytest.fixture(scope="module")
def sandbox():
    with LocalSandbox(num_workers=1) as sandbox:
        yield sandbox


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("answer", "code", "share", "all_passed"),
    [
        (STDIN_TESTS, DOUBLE, 1.0, 1.0),
        (STDIN_TESTS, "n = int(input())\nprint(n * 2 if n > 0 else 0)\nn", 2 / 3, 0.0),
        (STDIN_TESTS, "def main():\n    print(int(input()) * 2)\n    return 5\nmain()", 1.0, 1.0),
        (STDIN_TESTS, "1 / 0", 0.0, 0.0),
        (STDIN_TESTS, "while True: pass", 0.0, 0.0),
        (livecodebench(), ADD_TO_ALL, 1.0, 1.0),
        (livecodebench(), "def add_to_all(numbers, amount): return [4, 5]", 0.5, 0.0),
        (livecodebench(), "def other(): pass", 0.0, 0.0),
        (livecodebench(), "def add_to_all(numbers, amount): return {1: {2}}", 0.0, 0.0),
        (livecodebench(), "def add_to_all(numbers, amount):\n    import os; os._exit(0)", 0.0, 0.0),
        (
            livecodebench(),
            "def add_to_all(numbers, amount):\n"
            "    import os\n    print('sod-result:{', flush=True)\n    os._exit(0)",
            0.0,
            0.0,
        ),
        (
            livecodebench(),
            "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n"
            "    x: int\ndef add_to_all(numbers, amount): return [A(n + amount).x for n in numbers]",
            1.0,
            1.0,
        ),
    ],
)
def test_programs_are_judged(sandbox, answer, code, share, all_passed):
    text = fenced(code)
    assert get_reward("code", sandbox, timeout_s=1.0)(task(answer), text) == pytest.approx(share)
    assert get_reward("code_all", sandbox, timeout_s=1.0)(task(answer), text) == all_passed


@pytest.mark.sandbox
def test_an_answer_without_a_program_scores_nothing(sandbox):
    assert get_reward("code", sandbox)(task(STDIN_TESTS), "print(1)") == 0.0


@pytest.mark.sandbox
def test_a_sandbox_that_is_down_gives_no_score(monkeypatch, tmp_path):
    bubblewrap = tmp_path / "bwrap"
    bubblewrap.symlink_to(shutil.which("bwrap"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with LocalSandbox(num_workers=1) as sandbox:
        bubblewrap.unlink()
        os.kill(sandbox.worker_pids[0], signal.SIGKILL)
        with pytest.raises(ToolUnavailableError, match="the tests could not be run: "):
            get_reward("code", sandbox)(task(STDIN_TESTS), fenced(DOUBLE))
