"""Faults of the ledger's tools, longer questions and codes: to study what errors do to a student."""

from __future__ import annotations

import json
import re

import pytest

from sod.config_file import config_from_dict
from sod.demo.expert_data import expert_traces
from sod.demo.tokenizer import ledger_tokenizer
from sod.envs.ledger import ITEMS, ledger_question, ledger_task
from sod.envs.ledger_chain import CODES, chain_question
from sod.envs.ledger_env import LedgerEnvironment, LedgerSection, lookup_tool
from sod.envs.ledger_expert import expert_turns
from sod.envs.ledger_faults import LedgerFaults, with_retries
from sod.envs.registry import TaskRequest
from sod.errors import ConfigError, DataError
from sod.parsing import parse_hermes
from sod.sandbox import sandbox_problem
from sod.task_files import make_tasks
from sod.types import ToolOutcome, ToolResult

FAULTS = LedgerFaults(rate=0.25, garbled_share=0.5, seed=0)


def test_faults_come_as_often_as_set_and_half_of_them_are_garbled():
    kinds = [FAULTS.kind(f"task-{task}", number) for task in range(400) for number in range(10)]
    assert 0.23 < 1 - kinds.count("none") / len(kinds) < 0.27
    assert 0.45 < kinds.count("garbled") / (len(kinds) - kinds.count("none")) < 0.55
    assert kinds == [FAULTS.kind(f"task-{task}", number) for task in range(400) for number in range(10)]
    other = LedgerFaults(rate=0.25, garbled_share=0.5, seed=1)
    assert kinds != [other.kind(f"task-{task}", number) for task in range(400) for number in range(10)]


def test_a_garbled_answer_is_of_the_wrong_kind_and_has_no_error_word():
    faults = LedgerFaults(rate=0.9, garbled_share=1.0, seed=0)
    for truth, is_wrong in (("7", ITEMS.__contains__), ("-12", ITEMS.__contains__), ("lamp", str.isdigit)):
        result = ToolResult(name="lookup", outcome=ToolOutcome.OK, text=truth)
        texts = [
            faults.applied(result, "t", number).text
            for number in range(50)
            if faults.kind("t", number) == "garbled"
        ]
        assert len(texts) > 30
        assert all(is_wrong(text) for text in texts)
    assert faults.applied(result, "t", 0).outcome is ToolOutcome.OK


def attempt(task, *texts: str, **values):
    environment = LedgerEnvironment(task, (lookup_tool(task.fields["table"]),), LedgerSection(**values))
    environment.reset()
    steps = []
    for text in texts:
        turn = parse_hermes(text)
        results = []
        for call in turn.calls:
            try:
                value = environment.tools[0].function(**call.arguments)
                results.append(ToolResult(name="lookup", outcome=ToolOutcome.OK, text=value))
            except LookupError as error:
                results.append(ToolResult(name="lookup", outcome=ToolOutcome.TOOL_ERROR, text=str(error)))
        steps.append(environment.step(turn, tuple(results)))
    return steps


def lookup(item: str, field: str = "price") -> str:
    arguments = {"item": item, "field": field}
    return f"<tool_call>{json.dumps({'name': 'lookup', 'arguments': arguments})}</tool_call>"


def test_only_right_calls_fail_and_all_attempts_meet_the_same_faults():
    task = ledger_task(ledger_question(0, 3), task_id="task-4")
    item, truth = next((name, str(row["price"])) for name, row in task.fields["table"].items())
    texts = [lookup("spaceship"), *[lookup(item)] * 12]
    steps = attempt(task, *texts, fault_rate=0.4, max_errors_in_a_row=9)
    again = attempt(task, *texts, fault_rate=0.4, max_errors_in_a_row=9)
    seen = [step.results[0].text for step in steps]
    assert seen == [step.results[0].text for step in again]
    assert seen[0] == "error: no item spaceship"
    faults = LedgerSection(fault_rate=0.4).faults
    kinds = [faults.kind("task-4", number) for number in range(12)]
    assert {"none", "timeout", "garbled"} == set(kinds)
    for text, kind in zip(seen[1:], kinds, strict=True):
        if kind == "garbled":
            assert text in ITEMS
        else:
            assert text == {"none": truth, "timeout": "error: timeout"}[kind]
    # The wrong call in front has not moved them.
    moved = attempt(task, *texts[1:], fault_rate=0.4, max_errors_in_a_row=9)
    assert [step.results[0].text for step in moved] == seen[1:]
    honest = attempt(task, lookup(item), lookup(item))
    assert [step.results[0].text for step in honest] == [truth, truth]


def test_the_expert_repeats_a_call_until_it_is_answered():
    question = chain_question(0, 1, num_lookups=4, has_codes=True)
    turns = expert_turns(question)
    written = with_retries(turns, FAULTS, "task-8")
    right = iter(turns)
    number, current = 0, next(right)
    for turn in written:
        assert turn == current
        if "<tool_call>" in turn.text:
            current = turn if FAULTS.kind("task-8", number) != "none" else next(right)
            number += 1
    assert len(written) > len(turns)
    assert with_retries(turns, LedgerFaults(rate=0.0, garbled_share=0.5, seed=0), "task-8") == turns
    spoilt = expert_turns(question, seed=1, error_rate=0.6)
    assert [turn for turn in with_retries(spoilt, FAULTS, "x") if turn.mistake] == [
        turn for turn in spoilt if turn.mistake
    ]


@pytest.mark.parametrize("has_codes", [False, True])
@pytest.mark.parametrize("num_lookups", [2, 5, 10])
def test_a_chain_takes_as_many_lookups_as_set_and_its_answer_is_right(num_lookups, has_codes):
    for index in range(40):
        question = chain_question(3, index, num_lookups=num_lookups, has_codes=has_codes)
        assert question == chain_question(3, index, num_lookups=num_lookups, has_codes=has_codes)
        calls = [turn.text for turn in expert_turns(question) if '"lookup"' in turn.text]
        assert len(calls) == num_lookups
        assert question.answer == eval(question.expression)
        assert len(question.table) == 10
        for amount in question.amounts:
            assert amount.item in question.table
            assert (CODES[amount.code] == amount.item) if has_codes else not amount.code
            assert (amount.code or amount.item) in question.text


def test_codes_never_change_and_are_needed():
    # Models and recorded results have learnt them.
    assert len(CODES) == 120
    assert dict(list(CODES.items())[:3]) == {"desk 1": "harp", "desk 2": "bell", "desk 3": "harp"}
    assert all(code.split()[0] != item for code, item in CODES.items())
    # The name in a code does not tell the item: four digits lead to different ones.
    by_name = {}
    for code, item in CODES.items():
        by_name.setdefault(code.split()[0], set()).add(item)
    assert all(len(items) >= 2 for items in by_name.values())


def test_no_held_out_chain_is_worded_like_a_training_one():
    texts = {
        split: {
            chain_question(seed, index, num_lookups=2, has_codes=True, split=split).text
            for seed in range(2)
            for index in range(200)
        }
        for split in ("train", "held_out")
    }
    assert not texts["train"] & texts["held_out"]
    assert all(re.search(r"the (price|stock) of \w+ [1-4]\b", text) for text in texts["train"])


def test_settings_make_the_tasks_and_are_checked(tmp_path):
    raw = {
        "run": {"output": "out"},
        "trainer": {"rounds": 1},
        "environment": {"name": "ledger", "num_lookups": 4, "has_codes": True, "fault_rate": 0.25},
    }
    section = config_from_dict(raw, base=tmp_path).environment
    tasks = make_tasks(section, TaskRequest(num_tasks=3, seed=2, split="held_out", first=1))
    assert [task.task_id for task in tasks] == [f"ledger-held_out-2-{index}" for index in (1, 2, 3)]
    expected = chain_question(2, 1, num_lookups=4, has_codes=True, split="held_out")
    assert tasks[0].messages[0]["content"] == expected.text
    plain = make_tasks(LedgerSection(), TaskRequest(num_tasks=1, seed=2))
    assert plain[0].messages[0]["content"] == ledger_question(2, 0).text
    for values, words in (
        ({"garbled_share": 0.2}, "garbled_share = 0.2: is not read with fault_rate = 0"),
        ({"fault_seed": 3}, "fault_seed = 3: is not read"),
        ({"has_codes": True}, "has_codes = True: belongs to num_lookups"),
        ({"num_lookups": 11}, "num_lookups = 11: wanted at most 10"),
        ({"fault_rate": 1.0}, "fault_rate = 1.0: wanted at most 0.9"),
    ):
        with pytest.raises(ConfigError, match=words):
            LedgerSection(**values)
    with pytest.raises(DataError, match="ledger: num_tasks is 0; ask for at least 1"):
        make_tasks(section, TaskRequest(num_tasks=0))


def test_bad_chains_are_refused():
    with pytest.raises(DataError, match="num_lookups is 1; wanted 2 to 10"):
        chain_question(0, 0, num_lookups=1, has_codes=False)
    with pytest.raises(DataError, match="split is 'test'; choose one of train, held_out"):
        chain_question(0, 0, num_lookups=2, has_codes=False, split="test")
    with pytest.raises(DataError, match="index is -1; it counts from 0"):
        chain_question(0, -1, num_lookups=2, has_codes=False)


@pytest.mark.sandbox
@pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}")
def test_expert_traces_are_solved_through_real_tools_with_faults():
    section = LedgerSection(fault_rate=0.25, num_lookups=3, has_codes=True)
    tokenizer = ledger_tokenizer()
    traces = expert_traces(12, seed=7, error_rate=0.1, tokenizer=tokenizer, section=section)
    assert all(trace.is_success for trace in traces)
    outcomes = [result for trace in traces for turn in trace.turns for result in turn.results]
    assert any(result.outcome is ToolOutcome.TIMEOUT for result in outcomes)
    assert any(result.outcome is ToolOutcome.OK and result.text in ITEMS for result in outcomes)
