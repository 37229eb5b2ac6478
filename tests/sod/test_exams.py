"""Examinations in their own columns, the rule that each problem gets, and the grader that each task names."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from pickle import dumps

import pyarrow
import pyarrow.parquet
import pytest

from sod.assembly import load_task_file
from sod.code_tests import parse_code_tests
from sod.config_file import config_from_dict
from sod.errors import ConfigError, DataError
from sod.exams import CODE_RULE, EXAMS, LETTER_RULE, MATH_RULE, load_exam
from sod.questions import load_questions
from sod.rewards import TaskReward, get_reward
from sod.sandbox import LocalSandbox
from sod.types import Task

TESTS = {"inputs": ["1 2\n"], "outputs": ["3\n"]}
CASES = [{"input": "1 2", "output": "3", "testtype": "stdin"}]
PACKED = b64encode(zlib.compress(dumps(json.dumps(CASES)))).decode()
ROWS = [
    pytest.param("aime", {"ID": "2024-I-1", "Problem": "P?", "Answer": 33}, "P?", "33", id="aime 2024"),
    pytest.param("aime", {"problem": "P?", "answer": "33"}, "P?", "33", id="aime 2025"),
    pytest.param("aime", {"question": "P?", "answer": "33"}, "P?", "33", id="aime, a copy"),
    pytest.param(
        "math500",
        {"unique_id": "test/algebra/1.json", "problem": "P?", "solution": "s", "answer": r"\frac12"},
        "P?",
        r"\frac12",
        id="math500",
    ),
    pytest.param(
        "gsm8k", {"question": "P?", "answer": "2*9 = <<2*9=18>>18\n#### 1,018"}, "P?", "1018", id="gsm8k"
    ),
    pytest.param(
        "gpqa",
        {"data_source": "gpqa", "problem": "P?\nA) 1\nB) 2", "solution": r"\boxed{B}", "domain": "Physics"},
        "P?\nA) 1\nB) 2",
        "B",
        id="gpqa, Open-AgentRL",
    ),
]


def write(path, row):
    path.write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(("form", "row", "problem", "answer"), ROWS)
def test_a_row_becomes_a_task_with_rule_and_grader(tmp_path, form, row, problem, answer):
    (task,) = load_questions(write(tmp_path / "f.jsonl", row), form)
    rule, grader = (LETTER_RULE, "letter") if form == "gpqa" else (MATH_RULE, "math")
    assert task.messages == ({"role": "user", "content": f"{problem}\n\n{rule}"},)
    assert task.fields == {"answer": answer, "grader": grader, "form": form}
    assert task.task_id == str(row.get("ID") or row.get("unique_id") or "f:1")


def test_the_right_option_of_gpqa_is_where_its_letter_says_and_not_always_the_same(tmp_path):
    rows = [
        {"Record ID": f"r{n}", "Question": f"Q{n}?", "Correct Answer": "right"}
        | {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
        for n in range(40)
    ]
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = load_exam(path, "gpqa")
    assert tasks == load_exam(path, "gpqa")
    assert [task.task_id for task in tasks] == [f"r{n}" for n in range(40)]
    for task in tasks:
        assert f"{task.fields['answer']}) right" in task.messages[0]["content"]
    assert {task.fields["answer"] for task in tasks} == set("ABCD")


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"problem": "P?", "ability": "code", "reward_model": json.dumps(TESTS)}, "P?\n\nThe program reads"),
        (
            {"question_id": "abc_a", "question_content": "P?", "starter_code": "", "metadata": "{}"}
            | {"public_test_cases": json.dumps(CASES), "private_test_cases": PACKED},
            "P?\n\nThe program reads",
        ),
        (
            {"question_content": "P?", "starter_code": "class Solution:\n", "metadata": "{}"}
            | {"public_test_cases": json.dumps(CASES), "private_test_cases": "[]"},
            "P?\n\nKeep to this beginning:\n```python\nclass Solution:\n```",
        ),
    ],
)
def test_programs_bring_their_tests(tmp_path, row, wanted):
    (task,) = load_exam(write(tmp_path / "f.jsonl", row), "livecodebench")
    content = task.messages[0]["content"]
    assert content.startswith(wanted)
    assert content.endswith(CODE_RULE)
    assert parse_code_tests(task.fields["answer"], "t").tests[0].wanted.strip() == "3"
    assert (task.fields["grader"], task.task_id) == ("code", row.get("question_id", "f:1"))


def test_the_training_set_of_open_agentrl_is_read_from_parquet(tmp_path):
    prompt = [{"role": "user", "content": "P?"}]
    rows = [
        {"data_source": "math_dapo", "prompt": prompt, "reward_model": {"ground_truth": "34"}},
        {"data_source": "code", "prompt": prompt, "reward_model": {"ground_truth": json.dumps(TESTS)}},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    raw = {
        "run": {"output": "out"},
        "trainer": {"rounds": 1},
        "data": {"train": "f.parquet", "form": "open_agentrl"},
    }
    one, other = load_task_file(config_from_dict(raw, base=tmp_path), "train")
    assert one.messages == ({"role": "user", "content": "P?"},)
    assert one.fields == {
        "answer": "34",
        "grader": "math",
        "form": "open_agentrl",
        "data_source": "math_dapo",
    }
    assert other.fields["grader"] == "code"


@pytest.mark.parametrize(
    ("form", "row", "words"),
    [
        ("aime", {"problem": "P?"}, r"row 1 is not of the form 'aime', which has `problem` .*KeyError"),
        ("aime", {"problem": "P?", "answer": " "}, "wanted an answer, got ' '"),
        ("gsm8k", {"question": "P?", "answer": "18"}, "an `answer` that ends with ####"),
        ("gpqa", {"problem": "P?", "solution": "E"}, "wanted a letter from A to D, got 'E'"),
        ("livecodebench", {"question_content": "P?"}, "is not of the form 'livecodebench'"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, form, row, words):
    with pytest.raises(DataError, match=words):
        load_exam(write(tmp_path / "f.jsonl", row), form)


def test_an_unknown_form_is_named(tmp_path):
    with pytest.raises(DataError, match=f"form is 'mmlu'; choose one of {', '.join(EXAMS)}, open_agentrl"):
        load_exam(tmp_path / "f.jsonl", "mmlu")
    with pytest.raises(DataError, match=r"form is 'mmlu'; choose one of nq, .*, gpqa, "):
        load_questions(tmp_path / "f.jsonl", "mmlu")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (r"\boxed{C}", 1.0),
        (r"so \boxed{(c)}", 1.0),
        (r"\boxed{\text{C}}", 1.0),
        (r"\boxed{C) 4 m}", 1.0),
        (r"\boxed{C}, no: \boxed{B}", 0.0),
        (r"\boxed{Cat}", 0.0),
        ("C", 0.0),
        (r"\boxed{}", 0.0),
    ],
)
def test_a_choice_is_read_from_the_box(text, score):
    task = Task(task_id="t", messages=(), fields={"answer": "C"})
    assert get_reward("letter")(task, text) == score


@pytest.mark.sandbox
def test_every_task_is_scored_by_the_grader_it_names():
    with LocalSandbox(num_workers=1) as sandbox:
        reward = get_reward("by_task", sandbox, timeout_s=2.0)
        assert isinstance(reward, TaskReward)

        def score(text, **fields):
            return reward(Task(task_id="t", messages=(), fields=fields), text)

        assert score(r"\boxed{0.5}", grader="math", answer=r"\frac12") == 1.0
        assert score(r"\boxed{0.5}", grader="exact", answer="0.5") == 0.0
        program = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
        assert score(program, grader="code", answer=TESTS) == 1.0
        for grader in (None, "by_task"):
            with pytest.raises(DataError, match=f"of task 't' is {grader!r}; wanted the name of a reward"):
                score("", grader=grader, answer="1")
        with pytest.raises(ConfigError, match="unknown reward 'mth'"):
            score("", grader="mth", answer="1")
