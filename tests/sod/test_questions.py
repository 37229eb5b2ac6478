"""Published question sets in their own columns, on small files of the same form."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from sod.config import DataSection
from sod.config_file import config_from_dict
from sod.errors import ConfigError, DataError
from sod.questions import FORMS, load_questions
from sod.run_data import load_task_file

ROWS = {
    "nq": ({"question": "who wrote it", "answer": ["Ann", "A. Bee", "Ann"]}, ["Ann", "A. Bee"], "f:1"),
    "triviaqa": (
        {
            "question": "Who?",
            "question_id": "tc_1",
            "question_source": "x",
            "answer": {"aliases": ["Bob", "Robert"], "normalized_aliases": ["bob"], "value": "Bob"},
        },
        ["Bob", "Robert"],
        "tc_1",
    ),
    "hotpotqa": (
        {"id": "5a", "question": "Who?", "answer": "yes", "type": "comparison", "level": "hard"},
        ["yes"],
        "5a",
    ),
    "2wiki": ({"_id": "2w", "question": "Who?", "answer": "Eve", "supporting_facts": []}, ["Eve"], "2w"),
    "musique": (
        {"id": "2hop__1", "question": "Who?", "answer": "UK", "answer_aliases": ["Britain", ""]},
        ["UK", "Britain"],
        "2hop__1",
    ),
    "bamboogle": ({"Question": "Who?", "Answer": "Ada"}, ["Ada"], "f:1"),
    "popqa": (
        {"id": 42, "question": "Who?", "possible_answers": json.dumps(["politician", "pol"])},
        ["politician", "pol"],
        "42",
    ),
    "golden_answers": ({"id": "t0", "question": "Who?", "golden_answers": ["Cy"]}, ["Cy"], "t0"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("form", sorted(ROWS))
def test_every_form_is_read_from_every_kind_of_file(tmp_path, form, suffix):
    row, answers, task_id = ROWS[form]
    path = tmp_path / f"f{suffix}"
    if suffix == ".parquet":
        if form == "2wiki":
            row = {key: value for key, value in row.items() if value != []}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row]) if suffix == ".json" else json.dumps(row) + "\n")
    (task,) = load_questions(path, form)
    assert task.task_id == task_id
    assert task.messages == ({"role": "user", "content": row.get("question", "Who?")},)
    assert task.fields == {"answer": answers, "form": form}


def test_every_known_form_is_tested():
    assert sorted(ROWS) == sorted(FORMS)


def test_a_list_that_was_converted_from_popqa_is_read_too(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"question": "Who?", "possible_answers": ["a", "b"]}\n')
    (task,) = load_questions(tmp_path / "f.jsonl", "popqa", limit=1)
    assert task.fields["answer"] == ["a", "b"]


@pytest.mark.parametrize(
    ("form", "row", "words"),
    [
        (
            "nq",
            {"question": "q", "golden_answers": ["a"]},
            "form 'nq', which has `question` and the list",
        ),
        ("triviaqa", {"question": "q", "answer": "a"}, "row 1 is not of the form 'triviaqa'"),
        ("popqa", {"question": "q", "possible_answers": "[not json"}, "row 1 is not of the form 'popqa'"),
        ("nq", {"question": "q", "answer": [1]}, "wanted a text or a list of texts, got"),
        ("nq", {"question": " ", "answer": ["a"]}, "the question is ' ' and the answers are"),
        ("nq", {"question": "q", "answer": [""]}, r"the answers are \[\]; wanted both"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, form, row, words):
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=words):
        load_questions(tmp_path / "f.jsonl", form)


def test_unknown_forms_repeated_ids_and_broken_lists_are_refused(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"id": "x", "question": "q", "answer": ["a"]}\n' * 2)
    with pytest.raises(DataError, match="form is 'squad'; choose one of nq, triviaqa"):
        load_questions(path, "squad")
    with pytest.raises(DataError, match="row 2: id 'x' is that of an earlier row too"):
        load_questions(path, "nq")
    for text, words in (("{", "is not valid JSON"), ('{"a": 1}', "must hold one list of objects")):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(DataError, match=words):
            load_questions(tmp_path / "f.json", "nq")


def test_a_run_names_the_form(tmp_path):
    (tmp_path / "f.jsonl").write_text(json.dumps(ROWS["nq"][0]) + "\n")
    raw = {
        "run": {"output": "out"},
        "trainer": {"rounds": 1},
        "data": {"train": "f.jsonl", "form": "nq", "train_limit": 1},
    }
    (task,) = load_task_file(config_from_dict(raw, base=tmp_path), "train")
    assert task.fields["answer"] == ["Ann", "A. Bee"]
    with pytest.raises(ConfigError, match=r'\[data\] answer_column = .golden.: belongs to form = "plain"'):
        DataSection(train=tmp_path, form="nq", answer_column="golden")


def test_tasks_without_an_answer_are_read_with_an_empty_column(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"prompt": "Play."}\n')
    raw = {
        "run": {"output": "out"},
        "trainer": {"rounds": 1},
        "data": {"train": "f.jsonl", "answer_column": ""},
    }
    (task,) = load_task_file(config_from_dict(raw, base=tmp_path), "train")
    assert task.fields == {}
