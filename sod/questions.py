"""Published question-answering data sets, in the columns that they are published with.

Each becomes tasks with the question as the prompt and all accepted answers as `fields["answer"]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sod.data import read_rows
from sod.errors import DataError
from sod.exams import AGENT_RL, EXAMS, load_exam
from sod.types import Task


@dataclass(frozen=True, kw_only=True)
class QuestionForm:
    """The columns of one data set.

    Attributes:
        question: Column of the question.
        answers: Reads the accepted answers of a row; what it misses raises KeyError or TypeError.
        id_columns: Columns that name a row, the first one present counts.
        columns: What a row must have, in words for an error.
    """

    question: str
    answers: Callable[[Mapping[str, Any]], list[str]]
    id_columns: tuple[str, ...]
    columns: str


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"wanted a text or a list of texts, got {value!r}")
    return list(value)


def _json_list(value: Any) -> list[str]:
    # PopQA keeps the list as a JSON text; converted copies of it keep it as a list.
    return _texts(json.loads(value) if isinstance(value, str) else value)


FORMS: Mapping[str, QuestionForm] = {
    "nq": QuestionForm(
        question="question",
        answers=lambda row: _texts(row["answer"]),
        id_columns=("id",),
        columns="`question` and the list `answer`",
    ),
    "triviaqa": QuestionForm(
        question="question",
        answers=lambda row: [row["answer"]["value"], *_texts(row["answer"]["aliases"])],
        id_columns=("question_id",),
        columns="`question` and `answer` with `value` and `aliases`",
    ),
    "hotpotqa": QuestionForm(
        question="question",
        answers=lambda row: _texts(row["answer"]),
        id_columns=("id", "_id"),
        columns="`question` and `answer`",
    ),
    "2wiki": QuestionForm(
        question="question",
        answers=lambda row: _texts(row["answer"]),
        id_columns=("id", "_id"),
        columns="`question` and `answer`",
    ),
    "musique": QuestionForm(
        question="question",
        answers=lambda row: [row["answer"], *_texts(row["answer_aliases"])],
        id_columns=("id",),
        columns="`question`, `answer` and `answer_aliases`",
    ),
    "bamboogle": QuestionForm(
        question="Question",
        answers=lambda row: _texts(row["Answer"]),
        id_columns=(),
        columns="`Question` and `Answer`",
    ),
    "popqa": QuestionForm(
        question="question",
        answers=lambda row: _json_list(row["possible_answers"]),
        id_columns=("id",),
        columns="`question` and `possible_answers`",
    ),
    "golden_answers": QuestionForm(
        question="question",
        answers=lambda row: _texts(row["golden_answers"]),
        id_columns=("id",),
        columns="`question` and the list `golden_answers`",
    ),
}
"""The data sets by name; "golden_answers" is the common form that FlashRAG gives all of them."""


def load_questions(path: str | Path, form: str, *, limit: int | None = None) -> list[Task]:
    """Read the questions of a published data set.

    Args:
        path: A `.jsonl`, `.parquet` or `.json` (one list) file.
        form: One of `FORMS`, or of the examinations of `sod.exams`.
        limit: Number of rows read from the start; None reads all.

    Returns:
        One task per row; `fields` has the accepted answers, without repetition, under `answer`, and `form`.

    Raises:
        DataError: The form is unknown, the file cannot be read, a row has other columns, or an id occurs
            twice.
    """
    if form in EXAMS or form == AGENT_RL:
        return load_exam(path, form, limit=limit)
    if form not in FORMS:
        known = ", ".join((*FORMS, *EXAMS, AGENT_RL))
        raise DataError(f"load_questions: form is {form!r}; choose one of {known}.")
    source, kind = Path(path), FORMS[form]
    tasks: dict[str, Task] = {}
    for number, row in read_rows(source, "load_questions", limit):
        where = f"load_questions: {source} row {number}"
        task = _task(row, kind, f"{source.stem}:{number}", form, where)
        if task.task_id in tasks:
            raise DataError(f"{where}: id {task.task_id!r} is that of an earlier row too.")
        tasks[task.task_id] = task
    return list(tasks.values())


def _task(row: Mapping[str, Any], kind: QuestionForm, fallback_id: str, form: str, where: str) -> Task:
    try:
        question = row[kind.question]
        answers = [answer for answer in dict.fromkeys(kind.answers(row)) if answer.strip()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{where} is not of the form {form!r}, which has {kind.columns}; it has {sorted(row)} "
            f"({type(error).__name__}: {error})."
        ) from error
    if not isinstance(question, str) or not question.strip() or not answers:
        raise DataError(f"{where}: the question is {question!r} and the answers are {answers}; wanted both.")
    ids = [str(row[column]) for column in kind.id_columns if row.get(column) is not None]
    return Task(
        task_id=ids[0] if ids else fallback_id,
        messages=({"role": "user", "content": question},),
        fields={"answer": answers, "form": form},
    )
