"""Whole rollouts: real tools in threads, real tokenizer and template, scripts or a real tiny model."""

from __future__ import annotations

import threading
from functools import partial
from typing import ClassVar

import pytest
import torch

from sod.chat import ChatRenderer
from sod.engines.base import SamplingParams
from sod.engines.hf import HFEngine
from sod.engines.scripted import ScriptedEngine
from sod.envs.base import StepResult
from sod.envs.tool_env import ToolEnvironment
from sod.errors import RolloutError
from sod.rewards import get_reward
from sod.rollout.collector import collect
from sod.rollout.limits import RolloutLimits
from sod.rollout.store import read_trajectories, write_trajectories
from sod.tokenization import tokenize_trajectory
from sod.tools import ToolRunner, ToolUnavailableError, tool
from sod.types import EndReason, StopReason, Task, ToolCall, ToolOutcome

LIMITS = RolloutLimits(max_turns=4, max_turn_tokens=200, max_trajectory_tokens=900)


@tool
def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: One.
        b: The other.
    """
    return str(a + b)


def task(name="t", answer="42"):
    return Task(task_id=name, messages=({"role": "user", "content": "17+25?"},), fields={"answer": answer})


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return ChatRenderer(tiny_tokenizer, tools=(add,))


@pytest.fixture(scope="module")
def runner():
    with ToolRunner((add,), timeout_s=5.0) as runner:
        yield runner


def params(renderer, **changes):
    return SamplingParams(**{"max_turn_tokens": 200, "stop_ids": renderer.stop_ids, **changes})


def call(arguments, name="add"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def run(renderer, runner, scripts, tasks, *, factory=None, limits=LIMITS, **options):
    encode = renderer._encode
    engine = ScriptedEngine([[encode(turn + "<|im_end|>") for turn in script] for script in scripts])
    engine.policy_version = 3
    factory = factory or partial(ToolEnvironment, tools=(add,), reward=get_reward("number"))
    return collect(
        tasks,
        engine=engine,
        renderer=renderer,
        environment_factory=factory,
        limits=limits,
        params=options.pop("params", params(renderer)),
        seed=0,
        runner=runner,
        **options,
    )


def test_a_trajectory_holds_everything_and_its_tokens_are_the_whole_rendering(
    renderer, runner, tiny_tokenizer
):
    script = [
        call('{"a": 17, "b": 25}'),
        "Let me see " + call('{"a": "x"}') + call("{broken") + call("{}", name="ad"),
        "The answer is 42",
    ]
    (trajectory,) = run(renderer, runner, [script], [task()])
    assert (trajectory.reward, trajectory.is_success, trajectory.end_reason) == (1.0, True, EndReason.DONE)
    first, second, third = trajectory.turns
    assert first.calls == (ToolCall(name="add", arguments={"a": 17, "b": 25}),)
    assert [(result.outcome, result.text) for result in first.results] == [(ToolOutcome.OK, "42")]
    outcomes = [result.outcome for result in second.results]
    assert outcomes == [ToolOutcome.BAD_ARGS, ToolOutcome.INVALID_JSON, ToolOutcome.UNKNOWN_TOOL]
    assert trajectory.num_errors == 3
    # The call that nobody can read is no call with empty arguments.
    assert [made.name for made in second.calls] == ["add", "ad"]
    assert (third.results, third.reward, third.policy_version) == ((), 1.0, 3)
    messages = [*task().messages]
    for text, turn in zip(script, trajectory.turns, strict=True):
        messages.append({"role": "assistant", "content": text})
        messages += [{"role": "tool", "content": result.text} for result in turn.results]
    text = tiny_tokenizer.apply_chat_template(messages, tools=[dict(add.schema)], tokenize=False)
    (sequence,) = tokenize_trajectory(trajectory)
    assert sequence.input_ids.tolist() == tiny_tokenizer(text, add_special_tokens=False)["input_ids"][:-1]


def test_turns_keep_the_messages_that_their_contexts_render(renderer, runner):
    script = [call('{"a": 17, "b": 25}'), "The answer is 42"]
    (trajectory,) = run(renderer, runner, [script], [task()])
    first, second = trajectory.turns
    assert first.messages == task().messages
    assert renderer.prompt_ids(first.messages) == first.context_ids
    assert [(message["role"], message["content"]) for message in second.messages] == [("tool", "42")]
    assert renderer.observation_ids(first.sampled_ids, second.messages) == second.context_ids
    # The tools are those of the run; a task of its own tools keeps their schemas.
    assert trajectory.tools is None
    factory = partial(ToolEnvironment, tools=(), reward=get_reward("number"))
    (other,) = run(renderer, runner, [["The answer is 42"]], [task()], factory=factory)
    assert other.tools == ()


def test_order_groups_and_progress(renderer, runner):
    # The first task ends last.
    scripts = [[call('{"a": 1, "b": 1}')] * 2 + ["1"], ["2"], [call('{"a": 1, "b": 1}'), "3"], ["4"]]
    seen = []
    trajectories = run(
        renderer,
        runner,
        scripts,
        [task("a", "1"), task("b", "3")],
        num_samples=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [(t.task_id, t.group_id, len(t.turns)) for t in trajectories] == [
        ("a", 0, 3),
        ("a", 0, 1),
        ("b", 1, 2),
        ("b", 1, 1),
    ]
    assert [t.is_success for t in trajectories] == [True, False, True, False]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert run(renderer, runner, [], []) == []


class Recording(ToolEnvironment):
    """A tool environment that brings a tool of its own and counts how often it is closed."""

    closed: ClassVar[list[str]] = []

    def __init__(self, task, tools):
        super().__init__(task, tools, get_reward("number"))
        self.name = task.task_id

    def close(self):
        self.closed.append(self.name)


def test_rows_that_end_together_run_their_own_tools_at_the_same_time(renderer, runner):
    barrier = threading.Barrier(3, timeout=10)

    def factory(task):
        @tool
        def secret() -> str:
            """Tell the secret of this attempt."""
            barrier.wait()
            return f"the secret of {task.task_id}"

        return Recording(task, (secret,))

    Recording.closed.clear()
    scripts = [[call("{}", name="secret"), "1"]] * 3
    trajectories = run(renderer, runner, scripts, [task(name) for name in "abc"], factory=factory)
    # One after the other, the first would have waited for the others in vain.
    assert [t.turns[0].results[0].text for t in trajectories] == [f"the secret of {name}" for name in "abc"]
    assert sorted(Recording.closed) == ["a", "b", "c"]


def test_an_unavailable_tool_means_another_attempt(renderer, runner):
    num_calls = 0

    @tool
    def flaky() -> str:
        """Work at the second call."""
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise ToolUnavailableError("server is restarting")
        return "fine"

    Recording.closed.clear()
    factory = partial(Recording, tools=(flaky,))
    scripts = [[call("{}", name="flaky"), "never"], ["1"], [call("{}", name="flaky"), "2"]]
    first, second = run(renderer, runner, scripts, [task("a", "2"), task("b", "1")], factory=factory)
    assert [turn.results[0].text for turn in first.turns[:1]] == ["fine"]
    assert (first.is_success, second.is_success, len(first.turns)) == (True, True, 2)
    assert Recording.closed == ["a", "b", "a"]


def test_a_tool_that_stays_unavailable_is_an_error(renderer, runner):
    @tool
    def down() -> str:
        """Never work."""
        raise ToolUnavailableError("server is gone")

    with pytest.raises(
        RolloutError, match=r"unavailable for 1 of 2 .* in 2 attempts; .*'down: server is gone'"
    ):
        run(
            renderer,
            runner,
            [[call("{}", name="down")], ["1"], [call("{}", name="down")]],
            [task("a"), task("b")],
            factory=partial(Recording, tools=(down,)),
            max_attempts=2,
        )


def test_a_reward_whose_sandbox_is_down_means_another_attempt_and_never_a_made_up_score(renderer, runner):
    num_scored = 0

    def flaky(task, text):
        nonlocal num_scored
        num_scored += 1
        if num_scored == 1:
            raise ToolUnavailableError("the sandbox is down")
        return float(text == "2")

    factory = partial(ToolEnvironment, tools=(), reward=flaky)
    (trajectory,) = run(renderer, runner, [["1"], ["2"]], [task("a", "2")], factory=factory)
    assert (trajectory.reward, num_scored) == (1.0, 2)
    num_scored = 0
    with pytest.raises(
        RolloutError, match=r"unavailable for 1 of 1 .* in 1 attempts; .*'the sandbox is down'"
    ):
        run(renderer, runner, [["1"]], [task("a", "2")], factory=factory, max_attempts=1)


def test_limits_end_trajectories_and_the_last_turn_still_counts(renderer, runner):
    endless = [call('{"a": 1, "b": 1}')] * 9
    (trajectory,) = run(renderer, runner, [endless], [task()])
    assert (len(trajectory.turns), trajectory.end_reason) == (4, EndReason.MAX_TURNS)
    assert trajectory.turns[-1].results[0].text == "2"
    prompt = len(trajectory.turns[0].context_ids)
    turn = len(trajectory.turns[0].sampled_ids)
    # Room for the turn and its observation, but not for one more token.
    full = prompt + turn + len(trajectory.turns[1].context_ids)
    for room, num_turns in ((full, 1), (full + 1, 2)):
        limits = RolloutLimits(max_turns=9, max_turn_tokens=64, max_trajectory_tokens=room)
        (trajectory,) = run(renderer, runner, [endless], [task()], limits=limits)
        assert (len(trajectory.turns), trajectory.end_reason) == (num_turns, EndReason.MAX_TOKENS)
    # A bound among the sampling parameters holds as well.
    tight = params(renderer, max_total_tokens=full, max_turn_tokens=5)
    (trajectory,) = run(renderer, runner, [["what a long final answer 42"]], [task()], params=tight)
    assert (len(trajectory.turns[0].sampled_ids), trajectory.turns[0].stop_reason) == (5, StopReason.LENGTH)


def test_environments_are_closed_when_something_breaks(renderer, runner):
    class Breaking(Recording):
        def step(self, turn, results):
            raise KeyError("a bug in the environment")

    Recording.closed.clear()
    with pytest.raises(KeyError):
        run(renderer, runner, [["1"], ["1"]], [task("a"), task("b")], factory=partial(Breaking, tools=()))
    assert sorted(Recording.closed) == ["a", "b"]


def test_step_rewards_add_up_and_user_messages_can_answer(renderer, runner):
    class Quiz:
        tools = ()

        def __init__(self, task):
            self.num_turns = 0

        def reset(self):
            return ({"role": "user", "content": "Guess."},)

        def step(self, turn, results):
            self.num_turns += 1
            if self.num_turns == 3:
                return StepResult(reward=1.0, is_done=True, is_success=True)
            # The second time nothing is said: the student speaks twice in a row.
            said = ({"role": "user", "content": "No."},) if self.num_turns == 1 else ()
            return StepResult(reward=0.25, messages=said)

        def close(self):
            pass

    (trajectory,) = run(renderer, runner, [["1", "2", "3"]], [task()], factory=Quiz)
    assert trajectory.reward == 1.5
    assert [turn.reward for turn in trajectory.turns] == [0.25, 0.25, 1.0]
    contexts = [renderer.decode(turn.context_ids) for turn in trajectory.turns[1:]]
    assert contexts == [
        "\n<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>assistant\n",
    ]


def test_bad_arguments_and_engines_are_named(renderer, runner):
    with pytest.raises(ValueError, match=r"params\.stop_ids are \[5\], but the renderer closes"):
        run(renderer, runner, [["1"]], [task()], params=SamplingParams(max_turn_tokens=4, stop_ids=(5,)))
    for name in ("num_samples", "max_attempts"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            run(renderer, runner, [["1"]], [task()], **{name: 0})
    limits = RolloutLimits(max_turns=1, max_turn_tokens=1, max_trajectory_tokens=9)
    with pytest.raises(
        RolloutError, match=r"prompt of task 't' has \d+ tokens, but max_trajectory_tokens is 9"
    ):
        run(renderer, runner, [["1"]], [task()], limits=limits)
    for name in ("max_turns", "max_turn_tokens", "max_trajectory_tokens"):
        with pytest.raises(ValueError, match=f"RolloutLimits: {name} must be . or more, got 0"):
            RolloutLimits(**{"max_turns": 1, "max_turn_tokens": 1, "max_trajectory_tokens": 2, name: 0})

    class Lazy:
        policy_version = 0

        def rollout(self, prompts, respond, params, *, seed):
            pass

    with pytest.raises(RolloutError, match=r"Lazy\.rollout came back before 1 trajectories were over"):
        collect(
            [task()],
            engine=Lazy(),
            renderer=renderer,
            environment_factory=partial(ToolEnvironment, tools=(), reward=get_reward("number")),
            limits=LIMITS,
            params=params(renderer),
            seed=0,
            runner=runner,
        )


def collect_with_model(model, renderer, runner, *, seed, top_p=1.0, **options):
    # A random model never closes a call: treat everything as an error that goes on.
    class Talk(ToolEnvironment):
        def step(self, turn, results):
            said = ({"role": "tool", "content": "error: " + "go on " * (len(turn.text) % 7)},)
            return StepResult(results=results, messages=said)

    engine = HFEngine(model, pad_id=renderer.pad_id, **options)
    engine.policy_version = 5
    return collect(
        [task("a"), task("b", "43")],
        engine=engine,
        renderer=renderer,
        environment_factory=partial(Talk, tools=(add,), reward=get_reward("number")),
        limits=RolloutLimits(max_turns=3, max_turn_tokens=12, max_trajectory_tokens=600),
        params=params(renderer, max_turn_tokens=12, top_p=top_p),
        seed=seed,
        runner=runner,
        num_samples=2,
    )


def test_sampled_log_probs_are_those_of_the_tokenised_trajectory(tiny_model, renderer, runner, tmp_path):
    trajectories = collect_with_model(tiny_model, renderer, runner, seed=1)
    write_trajectories(tmp_path / "r.jsonl.gz", trajectories)
    assert read_trajectories(tmp_path / "r.jsonl.gz") == trajectories
    for trajectory in trajectories:
        assert [turn.stop_reason for turn in trajectory.turns].count(StopReason.LENGTH) > 0
        (sequence,) = tokenize_trajectory(trajectory)
        with torch.no_grad():
            log_probs = tiny_model(sequence.input_ids[None]).logits[0, :-1].log_softmax(-1)
        expected = log_probs.gather(-1, sequence.input_ids[1:, None])[:, 0]
        at_response = sequence.response_mask[1:]
        assert at_response.sum() == trajectory.num_sampled_tokens
        assert torch.allclose(sequence.log_probs[1:][at_response], expected[at_response], atol=1e-5)


def test_every_turn_says_which_weights_sampled_it_and_whether_its_vocabulary_was_cut(
    tiny_model, renderer, runner
):
    for top_p in (1.0, 0.9):
        for trajectory in collect_with_model(tiny_model, renderer, runner, seed=1, top_p=top_p):
            assert len(trajectory.turns) > 1
            assert {(turn.policy_version, turn.is_truncated) for turn in trajectory.turns} == {(5, top_p < 1)}


def test_a_rollout_is_repeatable_and_seeded(tiny_model, renderer, runner):
    def ids(**options):
        return [
            [t.sampled_ids for t in r.turns]
            for r in collect_with_model(tiny_model, renderer, runner, **options)
        ]

    first = ids(seed=1)
    assert ids(seed=1) == first
    assert ids(seed=1, max_batch=3) == first
    assert ids(seed=2) != first
    # Two attempts at one task are two draws.
    assert first[0] != first[1]
