"""Task files and expert conversations, good and bad."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from sod.chat import ChatRenderer
from sod.data import expert_trajectories, load_tasks
from sod.errors import DataError
from sod.tokenization import tokenize_trajectory
from sod.types import ToolCall

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 plus 25?"}]


def jsonl(tmp_path, *rows, name="a.jsonl"):
    path = tmp_path / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def parquet(tmp_path, rows):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("write", [lambda p, rows: jsonl(p, *rows), parquet])
def test_rows_become_tasks(tmp_path, write):
    rows = [
        {"prompt": CHAT, "answer": "42", "level": 3},
        {"prompt": CHAT[1:], "answer": "43", "level": 4},
    ]
    first, second = load_tasks(write(tmp_path, rows))
    assert (first.task_id, second.task_id) == ("a:1", "a:2")
    assert first.messages == tuple(CHAT)
    assert first.fields == {"answer": "42", "level": 3}
    assert second.messages == tuple(CHAT[1:])


def test_strings_system_prompt_nested_answers_ids_and_limit(tmp_path):
    path = jsonl(
        tmp_path,
        {"question": "1+1?", "uid": 7, "reward_model": {"ground_truth": "2"}},
        "\n",
        {"question": "1+2?", "uid": 8, "reward_model": {"ground_truth": "3"}},
        "{never read}",
    )
    tasks = load_tasks(
        path,
        prompt_column="question",
        answer_column="reward_model.ground_truth",
        id_column="uid",
        system_prompt="Count.",
        limit=2,
    )
    assert [task.task_id for task in tasks] == ["7", "8"]
    assert tasks[1].messages == ({"role": "system", "content": "Count."}, {"role": "user", "content": "1+2?"})
    assert tasks[1].fields["answer"] == "3"
    assert load_tasks(path, prompt_column="question", answer_column=None, limit=1)[0].fields == {
        "uid": 7,
        "reward_model": {"ground_truth": "2"},
    }


GOOD = {"prompt": "hi", "answer": "1", "uid": "a"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ((), {}, "a.jsonl has no rows"),
        ((GOOD, "{oops\n"), {}, "a.jsonl row 2 is not valid JSON"),
        ((GOOD, "[1]\n"), {}, r"row 2 must be a JSON object, got b'\[1\]"),
        ((GOOD, {"prompt": "hi"}), {}, r"row 2 has no column 'answer'; it has \['prompt'\]"),
        ((GOOD,), {"answer_column": "answer.text"}, "row 1 has no column 'answer.text'"),
        (({**GOOD, "answer": None},), {}, "row 1: column 'answer' is empty"),
        (({"answer": "1"},), {}, "row 1 has no column 'prompt'"),
        (({**GOOD, "prompt": ""},), {}, "row 1, column 'prompt', message 0: the content must be a non-empty"),
        (({**GOOD, "prompt": []},), {}, "column 'prompt': expected a non-empty list of messages"),
        (({**GOOD, "prompt": 3},), {}, "expected a non-empty list of messages, got '3'"),
        (
            ({**GOOD, "prompt": [*CHAT, {"role": "bot", "content": "x"}]},),
            {},
            "message 2: expected a role of",
        ),
        (({**GOOD, "prompt": ["x"]},), {}, "message 0: expected a role of"),
        (({**GOOD, "prompt": [{"role": "user", "content": 3}]},), {}, "non-empty string, got 3"),
        (
            ({**GOOD, "prompt": [*CHAT, {"role": "assistant", "content": "x"}]},),
            {},
            "must not end with an assistant message",
        ),
        (({**GOOD, "prompt": CHAT},), {"system_prompt": "x"}, "begin with a system message already"),
        ((GOOD, GOOD), {"id_column": "uid"}, "row 2: id 'a' in column 'uid' is that of row 1 too"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, options, message):
    with pytest.raises(DataError, match=message):
        load_tasks(jsonl(tmp_path, *rows), **options)


def test_bad_files_and_limits_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl does not exist"):
        load_tasks(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"a\.csv must be a \.jsonl, \.parquet or \.json file"):
        load_tasks(jsonl(tmp_path, GOOD, name="a.csv"))
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        load_tasks(jsonl(tmp_path, GOOD, name="a.parquet"))
    with pytest.raises(ValueError, match="limit must be 1 or more, got 0"):
        load_tasks(jsonl(tmp_path, GOOD), limit=0)


def expert(arguments='{"code": "17+25"}', **changes):
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "python", "arguments": arguments}}],
        **changes,
    }
    return {
        "messages": [*CHAT, call, {"role": "tool", "content": "42"}, {"role": "assistant", "content": "42"}]
    }


@pytest.mark.parametrize("write", [lambda p, rows: jsonl(p, *rows), parquet])
def test_expert_conversations_have_the_ids_of_their_rendering(tmp_path, tiny_tokenizer, write):
    renderer = ChatRenderer(tiny_tokenizer, observation_roles=("tool",))
    first, second = expert_trajectories(write(tmp_path, [expert(), expert(weight=0)]), renderer)
    assert first.turns[0].calls == (ToolCall(name="python", arguments={"code": "17+25"}),)
    assert (second.task_id, second.group_id) == ("a:2", 1)
    (sequence,) = tokenize_trajectory(first)
    messages = expert({"code": "17+25"}, content="")["messages"]
    text = tiny_tokenizer.apply_chat_template(messages, tokenize=False)
    assert renderer.decode(sequence.input_ids) + "\n" == text
    trained = sequence.input_ids[sequence.loss_mask]
    assert renderer.decode(trained) == (
        '<tool_call>\n{"name": "python", "arguments": {"code": "17+25"}}\n</tool_call><|im_end|>42<|im_end|>'
    )
    (masked,) = tokenize_trajectory(second)
    assert masked.input_ids.equal(sequence.input_ids)
    assert renderer.decode(masked.input_ids[masked.loss_mask]) == "42<|im_end|>"
    assert masked.response_mask.equal(sequence.response_mask)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": CHAT}, "row 1, column 'messages': the last message has role 'user'"),
        (expert(weight=2), "weight of an assistant message must be 0 or 1, got 2"),
        (expert("{"), "message 2: the arguments of 'python' are not valid JSON"),
        (expert("[1]"), r"message 2: the arguments of 'python' must be an object, got \[1\]"),
        (expert(tool_calls=[3]), "message 2: expected a tool call with name and arguments, got '3'"),
        (expert(tool_calls=[]), "message 2: the content must be a non-empty string, got None"),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "a<|im_end|>b"}]},
            "row 1, .*message 2 does not end at its first stop token",
        ),
    ],
)
def test_bad_expert_rows_are_named(tmp_path, tiny_tokenizer, row, message):
    renderer = ChatRenderer(tiny_tokenizer, observation_roles=("tool",))
    with pytest.raises(DataError, match=message):
        expert_trajectories(jsonl(tmp_path, row), renderer)
