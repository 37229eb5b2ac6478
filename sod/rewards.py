"""Rewards by name: how right a final answer is, against `task.fields["answer"]`."""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from sod.code_tests import last_program, parse_code_tests, passed_share
from sod.errors import ConfigError, DataError
from sod.math_check import check_math
from sod.sandbox import Sandbox
from sod.types import Task

Reward = Callable[[Task, str], float]
"""Scores the final text of an attempt at a task, usually in [0, 1]."""

# A letter that begins no word, in a bracket or a LaTeX command or bare.
_LETTER = re.compile(r"\s*(?:\\(?:text|mathrm|textbf|mathbf)\{)?\s*\(?([A-Za-z])(?![A-Za-z])")
# A sign right behind a digit is an operator: "3-5" ends with 5.
_NUMBER = re.compile(
    r"(?:(?<![\d.])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)


def exact(task: Task, text: str) -> float:
    """Score equality of texts, white space at the ends aside.

    Args:
        task: Has `fields["answer"]`.
        text: The final answer.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: The task has no answer.
    """
    return float(text.strip() == _answer(task).strip())


def number(task: Task, text: str) -> float:
    """Score equality of the last number in the text with the last number in the answer.

    Args:
        task: Has `fields["answer"]` with a number in it.
        text: The final answer.

    Returns:
        1.0 where both are the same number exactly (1,000 = 1000.0 = 1e3), else 0.0.

    Raises:
        DataError: The task has no answer or there is no number in it.
    """
    wanted = _last_number(_answer(task))
    if wanted is None:
        raise DataError(
            f'reward "number": the answer {_answer(task)!r} of task {task.task_id!r} holds no number; '
            'use "exact" or "math".'
        )
    return float(_last_number(text) == wanted)


def math(task: Task, text: str) -> float:
    r"""Score mathematical equality of the last `\boxed{}` with the answer, by math-verify.

    Args:
        task: Has `fields["answer"]`, plain or LaTeX, boxed or not.
        text: The final answer; without a closed box it scores 0.

    Returns:
        1.0 or 0.0; 0.0 also where the comparison takes too long.

    Raises:
        DataError: The task has no answer.
        ModuleNotFoundError: math-verify is not installed.
    """
    answer = _answer(task)
    boxed = last_boxed(text)
    if boxed is None:
        return 0.0
    wanted = last_boxed(answer)
    return float(check_math(answer if wanted is None else wanted, boxed))


def boxed(task: Task, text: str) -> float:
    r"""Score equality, character for character, of the last `\boxed{}` with the answer.

    SOD's release scores mathematics so, and reads the last 100 characters only; this reads all.

    Args:
        task: Has `fields["answer"]`, boxed or not.
        text: The final answer; without a closed box it scores 0.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: The task has no answer.
    """
    answer = _answer(task)
    found, wanted = last_boxed(text), last_boxed(answer)
    return float(found is not None and found.strip() == (answer if wanted is None else wanted).strip())


def letter(task: Task, text: str) -> float:
    r"""Score the choice in the last `\boxed{}`, however it is dressed: C, (c), \text{C}, "C) 4 m".

    Args:
        task: Has `fields["answer"]`, one capital letter.
        text: The final answer; without a closed box it scores 0.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: The task has no answer.
    """
    wanted, found = _answer(task).strip(), _LETTER.match(last_boxed(text) or "")
    return float(found is not None and found.group(1).upper() == wanted)


def qa_exact(task: Task, text: str) -> float:
    """Score equality of words with any of the answers: case, punctuation, articles and spaces aside.

    Args:
        task: Has `fields["answer"]`, one text or a list of equally good ones.
        text: The final answer.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: The task has no answer.
    """
    words = _words(text)
    return float(any(words == _words(answer) for answer in _answers(task)))


def f1(task: Task, text: str) -> float:
    """Score the words shared with the best of the answers: harmonic mean of precision and recall.

    Args:
        task: Has `fields["answer"]`, one text or a list of equally good ones.
        text: The final answer.

    Returns:
        2 shared / (words + words of the answer), in [0, 1], words counted as in `qa_exact`; where either has
        no words, 1.0 if neither has, else 0.0.

    Raises:
        DataError: The task has no answer.
    """
    words = _words(text)
    return max(_word_overlap(words, _words(answer)) for answer in _answers(task))


class CodeReward:
    """Scores a program, the last fenced Python block of the answer, by the tests of the task.

    Args:
        sandbox: Where the program runs; the caller closes it.
        timeout_s: Deadline of one test in seconds.
        needs_all: 1.0 where every test passes and else 0.0, instead of the share of tests passed.
    """

    def __init__(self, sandbox: Sandbox, *, timeout_s: float = 10.0, needs_all: bool = False) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s
        self._needs_all = needs_all

    def __call__(self, task: Task, text: str) -> float:
        """Score an answer.

        Args:
            task: Has `fields["answer"]` in a form of `sod.code_tests.parse_code_tests`.
            text: The final answer; without a program it scores 0.

        Returns:
            A number in [0, 1].

        Raises:
            DataError: The task has no tests.
            ToolUnavailableError: The sandbox is down: the trajectory must be dropped, not scored.
        """
        tests = parse_code_tests(_answer_field(task), f"task {task.task_id!r}")
        program = last_program(text)
        if program is None:
            return 0.0
        share = passed_share(
            program, tests, self._sandbox, timeout_s=self._timeout_s, stops_at_failure=self._needs_all
        )
        return float(share == 1.0) if self._needs_all else share


class TaskReward:
    """Scores each answer by the reward that its task names in `fields["grader"]`.

    Args:
        sandbox: Where programs run; the caller closes it.
        timeout_s: Deadline of one test in seconds.
    """

    def __init__(self, sandbox: Sandbox, *, timeout_s: float = 10.0) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s

    def __call__(self, task: Task, text: str) -> float:
        """Score an answer.

        Raises:
            DataError: The task names no grader.
            ConfigError: There is no such reward.
        """
        grader = task.fields.get("grader")
        if not isinstance(grader, str) or grader == "by_task":
            raise DataError(
                f'reward "by_task": fields["grader"] of task {task.task_id!r} is {grader!r}; wanted the name '
                "of a reward, add such a column or set [data] form."
            )
        return get_reward(grader, self._sandbox, timeout_s=self._timeout_s)(task, text)


REWARDS: dict[str, Reward] = {
    "exact": exact,
    "number": number,
    "math": math,
    "boxed": boxed,
    "letter": letter,
    "qa_exact": qa_exact,
    "f1": f1,
}
"""The rewards that need nothing but the task and the text."""
SANDBOX_REWARDS = ("code", "code_all", "by_task")
"""The rewards that may run a program: the share of tests passed; 1 for all and else 0; what the task says."""


def get_reward(name: str, sandbox: Sandbox | None = None, *, timeout_s: float = 10.0) -> Reward:
    """Find a reward by its name.

    Args:
        name: One of `REWARDS` or `SANDBOX_REWARDS`.
        sandbox: Where the latter run programs.
        timeout_s: Their deadline of one test, in seconds.

    Returns:
        The reward.

    Raises:
        ConfigError: There is no such reward (the message names the nearest), or it needs a sandbox.
    """
    if name in SANDBOX_REWARDS:
        if sandbox is None:
            raise ConfigError(
                f"get_reward: {name!r} runs programs, but sandbox is None; pass a LocalSandbox or a "
                "SandboxFusionClient."
            )
        if name == "by_task":
            return TaskReward(sandbox, timeout_s=timeout_s)
        return CodeReward(sandbox, timeout_s=timeout_s, needs_all=name == "code_all")
    if name not in REWARDS:
        names = sorted((*REWARDS, *SANDBOX_REWARDS))
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ConfigError(f"get_reward: unknown reward {name!r}, wanted one of {names}{hint}")
    return REWARDS[name]


def last_boxed(text: str) -> str | None:
    r"""Find the content of the last `\boxed{...}`.

    Args:
        text: Any text.

    Returns:
        What stands between the braces, or None without a box or where the last one is not closed.
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
        if depth == 0:
            return text[begin:position]
    return None


def _answer(task: Task) -> str:
    return str(_answer_field(task))


def _answers(task: Task) -> list[str]:
    """All answers that are right."""
    value = _answer_field(task)
    answers = [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
    if not answers:
        raise DataError(f'reward: fields["answer"] of task {task.task_id!r} is empty; leave the task out.')
    return answers


def _words(text: str) -> list[str]:
    """The words that questions and answers are compared by."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def _word_overlap(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    num_shared = (Counter(words) & Counter(wanted)).total()
    return 2 * num_shared / (len(words) + len(wanted))


def _answer_field(task: Task) -> Any:
    answer: Any = task.fields.get("answer")
    if answer is None:
        raise DataError(
            f'reward: task {task.task_id!r} has no fields["answer"]; name its column in load_tasks, or give '
            "the environment a reward that needs no answer."
        )
    return answer


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        # An exponent beyond what a Decimal can hold.
        return None
