"""The ledger environment: real tools, real errors, and expert traces that went through both."""

from __future__ import annotations

import json

import pytest

from sod.config_file import config_from_dict
from sod.data import load_tasks, write_tasks
from sod.demo.expert_data import expert_traces
from sod.demo.tokenizer import ledger_tokenizer
from sod.envs.ledger import ITEMS, ledger_question, ledger_task, ledger_tasks
from sod.envs.ledger_env import LedgerSection, observation_text
from sod.envs.ledger_expert import expert_turns
from sod.envs.registry import build_environment
from sod.errors import RolloutError
from sod.parsing import parse_hermes
from sod.sandbox import sandbox_problem
from sod.tools import ToolRunner
from sod.types import EndReason, ToolOutcome, ToolResult, Trajectory

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}"),
]

QUESTION = ledger_question(0, 3)


@pytest.fixture(scope="module")
def built():
    environment = build_environment(LedgerSection())
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def runner(built):
    with ToolRunner(built.tools) as runner:
        yield runner


@pytest.fixture(scope="module")
def tokenizer():
    return ledger_tokenizer()


def _play(built, runner, *texts: str):
    environment = built.factory(ledger_task(QUESTION, task_id="x"))
    environment.reset()
    steps = []
    for text in texts:
        turn = parse_hermes(text)
        (results,) = runner.run_batch([turn.calls], tools=[environment.tools])
        steps.append(environment.step(turn, results))
    return steps


def _lookup(item: str, field: str) -> str:
    call = {"name": "lookup", "arguments": {"item": item, "field": field}}
    return f"<tool_call>{json.dumps(call)}</tool_call>"


def _python(code: str) -> str:
    return f"<tool_call>{json.dumps({'name': 'python', 'arguments': {'code': code}})}</tool_call>"


def _ids(trace: Trajectory) -> list:
    return [(turn.context_ids, turn.sampled_ids, turn.is_trained) for turn in trace.turns]


ABSENT = next(item for item in ITEMS if item not in QUESTION.table)


@pytest.mark.parametrize(
    ("text", "outcome", "observation"),
    [
        (_lookup("flute", "stock"), ToolOutcome.OK, "2"),
        (_lookup("bench", "rival"), ToolOutcome.OK, str(QUESTION.table["bench"]["rival"])),
        (_lookup(ABSENT, "price"), ToolOutcome.TOOL_ERROR, f"error: LookupError: no item {ABSENT}"),
        (_lookup("flute", "cost"), ToolOutcome.TOOL_ERROR, "error: LookupError: no field cost"),
        (_python("print(12-14*62)"), ToolOutcome.OK, "-856"),
        (_python("print(12-14*)"), ToolOutcome.TOOL_ERROR, "error: SyntaxError: invalid syntax"),
        (_python("print(1//0)"), ToolOutcome.TOOL_ERROR, "error: ZeroDivisionError: "),
        (_python("print(lamp)"), ToolOutcome.TOOL_ERROR, "error: NameError: name 'lamp' is not defined"),
        ('<tool_call>{"name": lookup}</tool_call>', ToolOutcome.INVALID_JSON, "error: invalid_json"),
        (
            '<tool_call>{"name": "buy", "arguments": {}}</tool_call>',
            ToolOutcome.UNKNOWN_TOOL,
            "error: unknown_tool",
        ),
        (
            '<tool_call>{"name": "lookup", "arguments": {"item": "canoe"}}</tool_call>',
            ToolOutcome.BAD_ARGS,
            "error: bad_args",
        ),
        ("lookup canoe stock", ToolOutcome.TOOL_ERROR, "error: no call and no number"),
    ],
)
def test_observations_are_real_and_short(built, runner, text: str, outcome, observation: str) -> None:
    (step,) = _play(built, runner, text)
    (result,) = step.results
    assert result.outcome is outcome
    assert result.text.startswith(observation)
    assert len(result.text) <= 48
    assert not step.is_done
    assert step.messages[0]["content"] == result.text


def test_only_the_exact_number_succeeds(built, runner) -> None:
    (right,) = _play(built, runner, "Answer: -2")
    (wrong,) = _play(built, runner, "Answer: 2")
    assert right.is_done
    assert right.is_success
    assert wrong.is_done
    assert not wrong.is_success


def test_three_errors_in_a_row_end_the_attempt_and_a_good_call_forgives(built, runner) -> None:
    bad, good = _lookup(ABSENT, "price"), _lookup("flute", "stock")
    steps = _play(built, runner, bad, bad, good, bad, bad, bad)
    assert [step.is_done for step in steps] == [False] * 5 + [True]
    assert steps[-1].end_reason is EndReason.MAX_ERRORS


def test_tables_of_two_attempts_do_not_mix(built, runner) -> None:
    tasks = ledger_tasks(40, seed=3)
    environments = [built.factory(task) for task in tasks]
    turns = [parse_hermes(_lookup(next(iter(task.fields["table"])), "price")) for task in tasks]
    results = runner.run_batch(
        [turn.calls for turn in turns], tools=[environment.tools for environment in environments]
    )
    for task, (result,) in zip(tasks, results, strict=True):
        table = task.fields["table"]
        assert result.text == str(table[next(iter(table))]["price"])


def test_observation_of_a_traceback_is_its_last_line() -> None:
    text = "1\nTraceback (most recent call last):\n  File\nValueError: " + "x" * 90 + "\n"
    result = ToolResult(name="python", outcome=ToolOutcome.TOOL_ERROR, text=text)
    assert observation_text(result) == ("error: ValueError: " + "x" * 90)[:48]


def test_expert_traces_are_solved_by_the_real_tools(tokenizer) -> None:
    traces = expert_traces(40, seed=4, error_rate=0.3, tokenizer=tokenizer)
    again = expert_traces(40, seed=4, error_rate=0.3, tokenizer=tokenizer)
    assert [_ids(trace) for trace in traces] == [_ids(trace) for trace in again]
    kinds = set()
    for index, trace in enumerate(traces):
        assert trace.is_success
        written = expert_turns(ledger_question(4, index), seed=4, error_rate=0.3)
        for turn, text in zip(trace.turns, written, strict=True):
            assert tokenizer.decode(turn.sampled_ids) == text.text
            assert turn.is_trained == text.is_trained
            # The mistakes are mistakes to the tools too, and nothing else is.
            assert any(result.is_error for result in turn.results) == (not turn.is_trained)
            kinds |= {result.outcome for result in turn.results}
    assert {ToolOutcome.OK, ToolOutcome.TOOL_ERROR, ToolOutcome.INVALID_JSON} <= kinds


def test_expert_notices_tools_that_answer_wrongly(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("sod.envs.ledger_env.ledger_reward", lambda task, text: 0.0)
    with pytest.raises(RolloutError, match=r"the expert did not solve expert-4-0; the tools answered: .*\d"):
        expert_traces(1, seed=4, error_rate=0.0, tokenizer=tokenizer)


def test_tasks_survive_the_file(tmp_path) -> None:
    tasks = ledger_tasks(5, seed=8, split="held_out")
    write_tasks(tmp_path / "tasks.jsonl", tasks)
    loaded = load_tasks(tmp_path / "tasks.jsonl")
    assert [task.messages for task in loaded] == [task.messages for task in tasks]
    for before, after in zip(tasks, loaded, strict=True):
        assert {key: after.fields[key] for key in before.fields} == before.fields


def test_a_toml_file_can_name_it(tmp_path) -> None:
    raw = {
        "run": {"output": "out"},
        "trainer": {"rounds": 1},
        "environment": {"name": "ledger", "max_errors_in_a_row": 2},
    }
    assert config_from_dict(raw, base=tmp_path).environment == LedgerSection(max_errors_in_a_row=2)
