"""The expert: always right in the end, wrong on purpose where asked, and reproducible."""

from __future__ import annotations

import json

import pytest

from sod.envs.ledger import ledger_question, look_up
from sod.envs.ledger_expert import MISTAKES, expert_turns, lookup_call, python_call


def _call(text: str) -> dict:
    assert text.startswith("<tool_call>")
    assert text.endswith("</tool_call>")
    return json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))


@pytest.mark.parametrize("index", range(60))
def test_expert_without_mistakes_reads_what_it_needs_and_answers(index: int) -> None:
    question = ledger_question(21, index)
    *calls, last = [turn.text for turn in expert_turns(question)]
    read = []
    for text in calls:
        call = _call(text)
        if call["name"] == "lookup":
            read.append(look_up(question.table, **call["arguments"]))
        else:
            # Every number of the sum was looked up before it was used.
            assert call["arguments"]["code"] == f"print({question.expression})"
            assert all(str(question.value(amount)) in read for amount in question.amounts)
    assert last == f"Answer: {question.answer}<|im_end|>"
    assert len(calls) == sum(1 + amount.is_of_rival for amount in question.amounts) + bool(question.signs)


def test_mistakes_are_marked_and_followed_by_the_right_call() -> None:
    seen = set()
    for index in range(200):
        question = ledger_question(22, index)
        clean = [turn.text for turn in expert_turns(question)]
        spoilt = expert_turns(question, seed=5, error_rate=0.4)
        assert [turn.text for turn in spoilt if turn.is_trained] == clean
        assert all(turn.text not in clean for turn in spoilt if not turn.is_trained)
        assert spoilt[-1].is_trained
        seen |= {turn.mistake for turn in spoilt}
    assert seen == {"", *MISTAKES}


def test_share_of_mistakes_is_what_was_asked_for() -> None:
    turns = [turn for i in range(400) for turn in expert_turns(ledger_question(23, i), error_rate=0.25)]
    calls = [turn for turn in turns if "</tool_call>" in turn.text]
    wrong = sum(not turn.is_trained for turn in calls)
    right = len(calls) - wrong
    # With at most two in a row a right call has 0.25 + 0.25^2 wrong ones before it on average.
    assert wrong / right == pytest.approx(0.3125, abs=0.05)


def test_same_seed_same_mistakes() -> None:
    question = ledger_question(24, 3)
    first = [expert_turns(question, seed=seed, error_rate=0.5) for seed in range(8)]
    assert first == [expert_turns(question, seed=seed, error_rate=0.5) for seed in range(8)]
    assert len(set(first)) > 1


def test_broken_json_cannot_be_parsed() -> None:
    broken = {
        turn.text
        for index in range(300)
        for turn in expert_turns(ledger_question(25, index), error_rate=0.5)
        if turn.mistake == "broken_json"
    }
    assert len(broken) > 50
    for text in broken:
        with pytest.raises(json.JSONDecodeError):
            _call(text)


def test_calls_are_json_in_the_hermes_form() -> None:
    assert _call(lookup_call("lamp", "price")) == {
        "name": "lookup",
        "arguments": {"item": "lamp", "field": "price"},
    }
    assert _call(python_call("2*3")) == {"name": "python", "arguments": {"code": "print(2*3)"}}


@pytest.mark.parametrize("error_rate", [-0.1, 1.0])
def test_impossible_error_rate_is_refused(error_rate: float) -> None:
    with pytest.raises(ValueError, match=r"error_rate is .*; it must be at least 0 and below 1"):
        expert_turns(ledger_question(0, 0), error_rate=error_rate)
