"""Calls in the hermes form, readable and not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from sod.parsing import has_open_call, parse_hermes
from sod.tools.calls import ParseFailure
from sod.types import ToolCall
from tests.sod.strategies import calls


def test_text_and_several_calls_in_one_turn():
    text = (
        'First this.\n<tool_call>\n{"name": "python", "arguments": {"code": "print(\\"</tool\\")"}}\n'
        "</tool_call>\n"
        'and <tool_call>{"arguments": {}, "name": "stop"}</tool_call> done'
    )
    turn = parse_hermes(text)
    assert turn.text == text
    assert turn.calls == (
        ToolCall(name="python", arguments={"code": 'print("</tool")'}),
        ToolCall(name="stop", arguments={}),
    )
    assert turn.content == "First this.\n\nand  done"


@given(calls)
def test_every_written_call_is_read_back(call):
    if not call.name:
        return
    body = json.dumps({"name": call.name, "arguments": call.arguments})
    if "tool_call>" in body:
        return
    assert parse_hermes(f"<tool_call>\n{body}\n</tool_call>").calls == (call,)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"name": "a", "arguments": {}', "not valid JSON: Expecting ',' delimiter at character 29"),
        ("", "not valid JSON: Expecting value at character 0"),
        ("[1]", 'expected a JSON object {"name": ..., "arguments": {...}}, got a list'),
        ("3", 'expected a JSON object {"name": ..., "arguments": {...}}, got a number'),
        ('{"arguments": {}}', 'the key "name" is missing'),
        ('{"name": "a"}', 'the key "arguments" is missing'),
        ('{"name": "", "arguments": {}}', '"name" must be a non-empty string, got a string'),
        ('{"name": null, "arguments": {}}', '"name" must be a non-empty string, got null'),
        ('{"name": "a", "arguments": "{}"}', '"arguments" must be a JSON object, got a string'),
        ('{"name": "a", "arguments": true}', '"arguments" must be a JSON object, got a boolean'),
        ('{"name": "a", "arguments": {"x": NaN}}', "not valid JSON: NaN is no JSON number"),
    ],
)
def test_unreadable_calls_keep_their_text_and_say_why(body, reason):
    text = f"<tool_call>{body}</tool_call>"
    assert parse_hermes(text).calls == (ParseFailure(text=text, reason=reason),)


@pytest.mark.parametrize("body", ["[" * 100_000, '{"name": "a", "arguments": {"x": ' + "1" * 5000 + "}}"])
def test_hostile_json_is_a_failure_and_no_crash(body):
    (failure,) = parse_hermes(f"<tool_call>{body}</tool_call>").calls
    assert isinstance(failure, ParseFailure)
    assert failure.reason.startswith("not valid JSON: ")


def test_a_call_that_is_not_closed_is_a_failure_even_when_its_json_is_whole():
    whole = '{"name": "a", "arguments": {}}'
    turn = parse_hermes(f"<tool_call>{whole}\n<tool_call>{whole}</tool_call><tool_call>{whole}")
    assert [type(call) for call in turn.calls] == [ParseFailure, ToolCall, ParseFailure]
    assert turn.calls[0].reason == "the call is not closed by </tool_call>"
    assert turn.content == ""


@pytest.mark.parametrize(
    ("text", "content", "num_calls"),
    [
        ("<think>maybe <tool_call>{}</tool_call></think> 42", "42", 0),
        ("<think>never closed <tool_call>{}</tool_call>", "", 0),
        ("so <think>that</think> is code", "so <think>that</think> is code", 0),
        ("\n<think>a</think>b</think> <think>d", "b</think> <think>d", 0),
        ('<tool_call>{"name": "a", "arguments": {"x": "<think>"}}</tool_call>', "", 1),
        ("no thought", "no thought", 0),
        ("<think></think><tool_call>{}</tool_call>", "", 1),
    ],
)
def test_thoughts_are_neither_content_nor_calls(text, content, num_calls):
    turn = parse_hermes(text)
    assert (turn.content, len(turn.calls)) == (content, num_calls)


def test_a_turn_that_starts_in_thought():
    assert parse_hermes("42 <tool_call>{}</tool_call>", starts_in_thought=True).calls == ()
    assert parse_hermes("hm</think>42", starts_in_thought=True).content == "42"


def test_open_calls():
    assert has_open_call("a <tool_call>{")
    assert not has_open_call("a <tool_call>{}</tool_call> b")
    assert not has_open_call("nothing")
