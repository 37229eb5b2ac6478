"""Calls as JSON, as code blocks and as actions: readable, unreadable, several in a turn, none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sod.parsing import PARSERS, parse_actions, parse_fences, parse_hermes, parse_json_calls
from sod.tools.calls import ParseFailure
from sod.types import ToolCall
from tests.sod.strategies import calls

ADD = ToolCall(name="add", arguments={"a": 1})
CALL = '{"name": "add", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, (ADD,)),
        (f"\n {CALL} \n", (ADD,)),
        (f"{CALL}; {CALL}", (ADD, ADD)),
        (f"{CALL}\n{CALL},{CALL}", (ADD, ADD, ADD)),
        (f"[{CALL}, {CALL}]", (ADD, ADD)),
        (f"<|python_tag|>{CALL}", (ADD,)),
        ('{"name": "add", "arguments": {"a": 1}}', (ADD,)),
        ('{"type": "function", "name": "add", "parameters": {"a": 1}}', (ADD,)),
        ('{"parameters": {"a": 1}, "name": "add"}', (ADD,)),
    ],
)
def test_json_calls(text, expected):
    turn = parse_json_calls(text)
    assert (turn.calls, turn.content) == (expected, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "add", "parameters": {"a": 1}', "not valid JSON: Expecting ',' delimiter at character 38"),
        ('{"name": "add"}', 'the key "parameters" is missing'),
        ('{"parameters": {}}', 'the key "name" is missing'),
        ('{"nme": "add", "parameters": {}}', 'the key "name" is missing'),
        ('[{"tool": "add", "arguments": {}}]', 'the key "name" is missing'),
        ('{"name": 3, "parameters": {}}', '"name" must be a non-empty string, got a number'),
        ('{"name": "a", "parameters": [1]}', '"parameters" must be a JSON object, got a list'),
        ('{"name": "a", "arguments": "{}"}', '"arguments" must be a JSON object, got a string'),
        ("<|python_tag|>print(1)", "not valid JSON: Expecting value at character 0"),
        ("<|python_tag|>", "there is no call in it"),
        ("<|python_tag|>[]", "there is no call in it"),
        ("<|python_tag|>[3]", 'expected a JSON object {"name": ..., "parameters": {...}}, got a number'),
    ],
)
def test_json_calls_that_cannot_be_read_say_why(text, reason):
    (failure,) = parse_json_calls(text).calls
    assert failure == ParseFailure(text=text.removeprefix("<|python_tag|>"), reason=reason)


def test_a_json_call_that_breaks_after_a_good_one_leaves_the_good_one():
    turn = parse_json_calls(CALL + '; {"name": ')
    assert turn.calls[0] == ADD
    assert isinstance(turn.calls[1], ParseFailure)
    assert turn.calls[1].text == '{"name":'


def test_what_follows_a_json_call_is_content():
    turn = parse_json_calls(CALL + "\nand that is 42")
    assert (turn.calls, turn.content) == ((ADD,), "and that is 42")


@pytest.mark.parametrize(
    "text", ['{"answer": 42}', "[1, 2]", "[]", "The call is " + CALL, "{x: y}", "", '{"names": ["add"]}']
)
def test_json_answers_are_no_calls(text):
    turn = parse_json_calls(text)
    assert (turn.calls, turn.content) == ((), text)


def test_code_blocks_are_calls_of_python_and_other_blocks_are_content():
    table = "and a table\n```text\n```python\n```"
    text = f"First:\n```python\nx = '```'\nprint(x)\n```\nthen\n```py\n2\n```\n{table}"
    turn = parse_fences(text)
    assert turn.calls == (
        ToolCall(name="python", arguments={"code": "x = '```'\nprint(x)\n"}),
        ToolCall(name="python", arguments={"code": "2\n"}),
    )
    assert turn.content == f"First:\n\nthen\n\n{table}"
    assert parse_fences("Inline ```python\n1\n``` is no block").calls == ()


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [
        (parse_fences, "```python\nprint(1)", "the code block is not closed by a line ```"),
        (parse_fences, "```python\nprint(1)```", "the code block is not closed by a line ```"),
        (parse_fences, "```python\n \n```", "the code block is empty"),
        (parse_actions, "<action>go", "the action is not closed by </action>"),
        (parse_actions, "<action> </action>", "the action is empty"),
    ],
)
def test_blocks_and_actions_that_cannot_be_read_say_why(parse, text, reason):
    assert parse(text).calls == (ParseFailure(text=text, reason=reason),)


def test_actions():
    turn = parse_actions(
        "<think>the <action>mug</action>?</think>I <action> take mug 1 </action><action>look"
    )
    assert turn.calls == (
        ToolCall(name="act", arguments={"action": "take mug 1"}),
        ParseFailure(text="<action>look", reason="the action is not closed by </action>"),
    )
    assert turn.content == "I"
    assert turn.thought == "<think>the <action>mug</action>?</think>"
    assert turn.spoken == "I <action> take mug 1 </action><action>look"


def test_what_was_thought_is_apart_from_what_was_said():
    turn = parse_hermes("17 and 25</think>\n42", starts_in_thought=True)
    assert (turn.thought, turn.spoken, turn.content) == ("17 and 25</think>", "42", "42")
    assert parse_hermes("<think>cut off").spoken == ""
    assert parse_hermes(" no thought ").thought == ""


pieces = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<action>", "</action>", "<think>", "</think>", "```", "```python"),
        *(
            "\n",
            "{",
            "}",
            "[",
            '"name"',
            ":",
            '"parameters"',
            ",",
            ";",
            "<|python_tag|>",
            CALL,
            '{"name": "a"',
        ),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces | st.text(max_size=4), max_size=12).map("".join), st.booleans())
def test_no_parser_raises_or_loses_what_was_said(text, starts_in_thought):
    for parse in PARSERS.values():
        turn = parse(text, starts_in_thought=starts_in_thought)
        assert turn.text == text
        assert text.startswith(turn.thought)
        # All that was said is content or part of a call; a failure quotes it.
        for call in turn.calls:
            assert not isinstance(call, ParseFailure) or (call.text in text and call.reason)
        if not turn.calls:
            marked = turn.spoken.removeprefix("<|python_tag|>")
            assert turn.content in (turn.spoken, marked)


@settings(max_examples=60, deadline=None)
@given(st.lists(calls, min_size=1, max_size=3))
def test_every_written_json_call_is_read_back(written):
    if not all(call.name for call in written):
        return
    text = "; ".join(json.dumps({"name": call.name, "parameters": dict(call.arguments)}) for call in written)
    assert parse_json_calls(text).calls == tuple(written)


@pytest.mark.parametrize("name", PARSERS)
def test_the_longest_garbage_is_read_in_a_moment(name):
    text = {"hermes": "<tool_call>", "json": CALL + ";", "python": "```python\n", "action": "<action>"}[name]
    assert len(PARSERS[name](text * 5000).calls) >= 1
