"""Published examinations, in the columns that they are published with: AIME, GPQA, LiveCodeBench and others.

Each row becomes a task with the problem and a rule for the final answer as the prompt, the truth as
`fields["answer"]`, and in `fields["grader"]` the reward that compares the two; `[environment] reward =
"by_task"` reads it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sod.data import load_tasks, read_rows
from sod.errors import DataError
from sod.types import Task

Row = Mapping[str, Any]
Grader = Literal["math", "letter", "code"]

_MANNER = "Make a plan first, then solve the problem step by step; you may run Python to compute or to check."
MATH_RULE = f"{_MANNER} When you are done, call no tool any more and put the final answer in \\boxed{{}}."
"""Rule of a problem with one exact answer."""
LETTER_RULE = (
    f"{_MANNER} When you are done, call no tool any more and put the capital letter of the right option in "
    "\\boxed{}."
)
"""Rule of a choice."""
CODE_RULE = (
    f"{_MANNER} When you are done, call no tool any more and give the final program in one ```python block."
)
"""Rule of a programming problem."""
_STDIN = "The program reads standard input and prints its result."
_STARTER = "Keep to this beginning:\n```python\n{code}\n```"


@dataclass(frozen=True, kw_only=True)
class ExamForm:
    """How one examination is read.

    Attributes:
        read: Gives problem and answer of a row; what it misses raises KeyError, TypeError or ValueError.
        rule: Follows the problem.
        grader: Reward that compares the final answer.
        id_columns: Columns that name a row, the first one present counts.
        columns: What a row must have, in words for an error.
    """

    read: Callable[[Row], tuple[str, Any]]
    rule: str
    grader: Grader
    id_columns: tuple[str, ...] = ()
    columns: str


def _problem_and_answer(row: Row) -> tuple[str, Any]:
    """The capitals differ between years and copies."""
    lower = {key.lower(): value for key, value in row.items()}
    return lower["problem"] if "problem" in lower else lower["question"], _text(lower["answer"])


def _gsm8k(row: Row) -> tuple[str, Any]:
    # The worked solution ends with the answer.
    return row["question"], row["answer"].split("####")[1].strip().replace(",", "")


def _gpqa(row: Row) -> tuple[str, Any]:
    if "Correct Answer" not in row:
        return row["problem"], _letter(row["solution"])
    right = _text(row["Correct Answer"])
    options = [right, *(_text(row[f"Incorrect Answer {number}"]) for number in (1, 2, 3))]
    # The right answer comes first in every row; the question itself decides where it goes.
    random.Random(f"gpqa:{row['Question']}").shuffle(options)  # noqa: S311 - not for secrets
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
    return f"{row['Question']}\n\n{listed}", "ABCD"[options.index(right)]


def _livecodebench(row: Row) -> tuple[str, Any]:
    if "question_content" not in row:
        return f"{row['problem']}\n\n{_STDIN}", row["reward_model"]
    keys = ("public_test_cases", "private_test_cases", "metadata")
    starter = str(row.get("starter_code") or "").strip()
    form = _STARTER.format(code=starter) if starter else _STDIN
    return f"{row['question_content']}\n\n{form}", {key: row[key] for key in keys}


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise TypeError(f"wanted an answer, got {value!r}")
    return str(value).strip()


def _letter(value: Any) -> str:
    found = _text(value).removeprefix("\\boxed{").removesuffix("}").strip("() ")
    if found not in tuple("ABCD"):
        raise ValueError(f"wanted a letter from A to D, got {value!r}")
    return found


_AIME = ExamForm(
    read=_problem_and_answer,
    rule=MATH_RULE,
    grader="math",
    id_columns=("ID", "id"),
    columns="`problem` (or `question`) and `answer`, capitalised or not",
)

EXAMS: Mapping[str, ExamForm] = {
    "aime": _AIME,
    "math500": replace(_AIME, id_columns=("unique_id",)),
    "gsm8k": ExamForm(
        read=_gsm8k, rule=MATH_RULE, grader="math", columns="`question` and an `answer` that ends with ####"
    ),
    "gpqa": ExamForm(
        read=_gpqa,
        rule=LETTER_RULE,
        grader="letter",
        id_columns=("Record ID",),
        columns="`Question`, `Correct Answer` and `Incorrect Answer 1` to `3`, or `problem` and `solution`",
    ),
    "livecodebench": ExamForm(
        read=_livecodebench,
        rule=CODE_RULE,
        grader="code",
        id_columns=("question_id",),
        columns="`question_content` and its test cases, or `problem` and `reward_model`",
    ),
}
"""Examinations by name."""
AGENT_RL = "open_agentrl"
"""The common form of Open-AgentRL's training set: prompts as they are, `reward_model.ground_truth`."""


def load_exam(path: str | Path, form: str, *, limit: int | None = None) -> list[Task]:
    """Read the problems of an examination.

    Args:
        path: A `.jsonl`, `.parquet` or `.json` (one list) file.
        form: One of `EXAMS`, or "open_agentrl".
        limit: Number of rows read from the start; None reads all.

    Returns:
        One task per row; `fields` has `answer`, `grader` and `form`.

    Raises:
        DataError: The form is unknown, the file cannot be read, or a row has other columns.
    """
    if form == AGENT_RL:
        return [_graded(task) for task in load_tasks(path, answer_column=_GROUND_TRUTH, limit=limit)]
    if form not in EXAMS:
        raise DataError(f"load_exam: form is {form!r}; choose one of {', '.join((*EXAMS, AGENT_RL))}.")
    source, kind = Path(path), EXAMS[form]
    return [
        _task(row, kind, form, f"{source.stem}:{number}", f"load_exam: {source} row {number}")
        for number, row in read_rows(source, "load_exam", limit)
    ]


_GROUND_TRUTH = "reward_model.ground_truth"


def _task(row: Row, kind: ExamForm, form: str, fallback_id: str, where: str) -> Task:
    try:
        problem, answer = kind.read(row)
        problem = _text(problem)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{where} is not of the form {form!r}, which has {kind.columns}; it has {sorted(row)} "
            f"({type(error).__name__}: {error})."
        ) from error
    ids = [str(row[column]) for column in kind.id_columns if row.get(column) is not None]
    return Task(
        task_id=ids[0] if ids else fallback_id,
        messages=({"role": "user", "content": f"{problem}\n\n{kind.rule}"},),
        fields={"answer": answer, "grader": kind.grader, "form": form},
    )


def _graded(task: Task) -> Task:
    """Programs have tests for an answer, everything else one text."""
    answer = task.fields["answer"]
    kept = {key: task.fields[key] for key in ("data_source",) if key in task.fields}
    grader: Grader = "code" if _has_tests(answer) else "math"
    return replace(task, fields={**kept, "answer": answer, "grader": grader, "form": AGENT_RL})


def _has_tests(answer: Any) -> bool:
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except ValueError:
            return False
    return isinstance(answer, Mapping)
