"""Rewards by name: how right a final answer is, against `task.fields["answer"]`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from sod.errors import ConfigError, DataError
from sod.math_check import check_math
from sod.types import Task

Reward = Callable[[Task, str], float]
"""Scores the final text of an attempt at a task, usually in [0, 1]."""

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


REWARDS: dict[str, Reward] = {"exact": exact, "number": number, "math": math}
"""The rewards that a config can name."""


def get_reward(name: str) -> Reward:
    """Find a reward by its name.

    Args:
        name: One of `REWARDS`.

    Returns:
        The reward.

    Raises:
        ConfigError: There is no such reward; the message names the nearest.
    """
    if name not in REWARDS:
        nearest = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ConfigError(f"get_reward: unknown reward {name!r}, wanted one of {sorted(REWARDS)}{hint}")
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
    answer: Any = task.fields.get("answer")
    if answer is None:
        raise DataError(
            f'reward: task {task.task_id!r} has no fields["answer"]; name its column in load_tasks, or give '
            "the environment a reward that needs no answer."
        )
    return str(answer)


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        # An exponent beyond what a Decimal can hold.
        return None
