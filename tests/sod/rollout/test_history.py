"""Trajectories of several sequences: summaries, prompts of an environment, templates that rewrite history."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sod.chat import ChatRenderer
from sod.chat_templates import TEMPLATES
from sod.engines.base import SamplingParams
from sod.engines.hf import HFEngine
from sod.engines.scripted import ScriptedEngine
from sod.envs.base import StepResult
from sod.evaluate import rollout_metrics
from sod.packing import pack
from sod.rollout.collector import collect
from sod.rollout.history import History, PastTurn, summary_prompt, text_of
from sod.rollout.limits import RolloutLimits
from sod.rollout.store import read_trajectories, write_trajectories
from sod.tokenization import tokenize_trajectory
from sod.tools import ToolRunner
from sod.types import Drift, EndReason, Task
from tests.sod.trained_tokenizers import trained_tokenizer

OPENING = ({"role": "system", "content": "Play."}, {"role": "user", "content": "Find the mug."})
PAST = [PastTurn(said=f"go {n}", answer=f"room {n}") for n in range(1, 4)]


def test_a_summary_tells_the_last_turns_and_the_latest_answer():
    system, user = summary_prompt(OPENING, PAST, window=2)
    assert system == OPENING[0]
    assert user == {
        "role": "user",
        "content": (
            "Find the mug.\n\nTurns taken so far: 3.\n\nTurn 2, you wrote:\ngo 2\n\n"
            "Turn 2, the answer was:\nroom 2\n\nTurn 3, you wrote:\ngo 3\n\nThe latest answer is:\nroom 3"
        ),
    }


def test_a_summary_of_nothing_or_of_more_than_there_is():
    assert summary_prompt(OPENING, PAST, window=0)[-1]["content"] == (
        "Find the mug.\n\nTurns taken so far: 3.\n\nThe latest answer is:\nroom 3"
    )
    assert summary_prompt(OPENING, PAST, window=9) == summary_prompt(OPENING, PAST, window=3)
    assert [message["role"] for message in summary_prompt(OPENING[:1], PAST, window=1)] == ["system", "user"]
    assert text_of([{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}]) == "a\nb"
    with pytest.raises(ValueError, match=r"window must be 0 or more, or None .*; got -1"):
        History(window=-1)


class Maze:
    """Answers with the number of the turn; the task says how many turns it takes."""

    tools = ()

    def __init__(self, task):
        self.task, self.num_turns = task, 0

    def reset(self):
        return self.task.messages

    def step(self, turn, results):
        self.num_turns += 1
        if self.num_turns == self.task.fields["turns"]:
            return StepResult(reward=1.0, is_done=True, is_success=True)
        return StepResult(messages=({"role": "user", "content": f"room {self.num_turns}"},))

    def close(self):
        pass


class Prompting(Maze):
    """Writes a prompt of its own for every second turn."""

    def step(self, turn, results):
        answer = super().step(turn, results)
        if self.num_turns % 2 == 0:
            return answer
        return replace(answer, prompt=({"role": "user", "content": f"turn {self.num_turns}"},))


def roll_out(
    tasks, scripts, *, factory=Maze, history=None, template="qwen3", rewrites="refuse", limits=None, **options
):
    tokenizer = trained_tokenizer("byte_level")
    renderer = ChatRenderer(
        tokenizer,
        chat_template=TEMPLATES[template],
        observation_roles=("user",),
        rewrites=rewrites,
        **options,
    )
    encode = renderer._encode
    engine = ScriptedEngine([[encode(turn + "<|im_end|>") for turn in script] for script in scripts])
    with ToolRunner((), timeout_s=5.0) as runner:
        trajectories = collect(
            [Task(task_id=str(n), messages=OPENING, fields={"turns": n}) for n in tasks],
            engine=engine,
            renderer=renderer,
            environment_factory=factory,
            limits=limits or RolloutLimits(max_turns=9, max_turn_tokens=99, max_trajectory_tokens=600),
            params=SamplingParams(max_turn_tokens=99, stop_ids=renderer.stop_ids),
            seed=0,
            runner=runner,
            history=history,
        )
    return renderer, trajectories


def contexts(renderer, trajectory):
    return [renderer.decode(turn.context_ids) for turn in trajectory.turns]


def test_with_a_window_every_turn_is_a_sequence_of_its_own(tmp_path):
    # Sequences ask for scripts in order: first both rows' first turns, then the second turns, and so on.
    scripts = [["a1"], ["b1"], ["<think>\nhm\n</think>\n\na2"], ["b2"], ["b3"]]
    renderer, trajectories = roll_out([2, 3], scripts, history=History(window=1))
    first, second = trajectories
    assert [(t.task_id, t.segments, t.is_success, t.reward) for t in trajectories] == [
        ("2", (0, 1), True, 1.0),
        ("3", (0, 1, 2), True, 1.0),
    ]
    assert [turn.drift for turn in second.turns] == [Drift.FORK, Drift.FORK, Drift.CLEAN]
    prompt = renderer.prompt_ids(summary_prompt(OPENING, [PastTurn(said="a1", answer="room 1")], window=1))
    assert first.turns[1].context_ids == prompt
    assert contexts(renderer, second)[2].count("room 1") == 0
    assert "Turn 2, you wrote:\nb2\n\nThe latest answer is:\nroom 2" in contexts(renderer, second)[2]
    sequences = tokenize_trajectory(second)
    assert [s.step_ids.max().item() for s in sequences] == [0, 1, 2]
    (batch,) = pack([tokenize_trajectory(t) for t in trajectories], [0, 1], max_tokens=9999, pad_id=0)
    assert (batch.input_ids.shape[0], batch.num_steps) == (5, 5)
    assert sorted(batch.step_turn.tolist()) == [0, 0, 1, 1, 2]
    write_trajectories(tmp_path / "t.jsonl.gz", trajectories)
    assert read_trajectories(tmp_path / "t.jsonl.gz") == trajectories


def test_a_summary_leaves_thinking_out():
    scripts = [["<think>\nthe mug?\n</think>\n\ngo 1"], ["b"]]
    renderer, (trajectory,) = roll_out([2], scripts, history=History(window=3))
    assert "the mug?" not in contexts(renderer, trajectory)[1]
    assert "you wrote:\ngo 1\n" in contexts(renderer, trajectory)[1]


def test_per_turn_tells_only_what_came_back():
    renderer, (trajectory,) = roll_out([3], [["a"], ["b"], ["c"]], history=History(window=0))
    assert trajectory.segments == (0, 1, 2)
    assert [context.count("you wrote") for context in contexts(renderer, trajectory)] == [0, 0, 0]
    assert "Find the mug.\n\nTurns taken so far: 2." in contexts(renderer, trajectory)[2]


def test_the_bound_on_tokens_is_one_on_each_sequence():
    _, (whole,) = roll_out([4], [["a"], ["b"], ["c"], ["d"]], history=History(window=0))
    longest = max(len(turn.context_ids) + len(turn.sampled_ids) for turn in whole.turns)
    assert longest < sum(len(turn.context_ids) + len(turn.sampled_ids) for turn in whole.turns)
    limits = RolloutLimits(max_turns=9, max_turn_tokens=99, max_trajectory_tokens=longest + 1)
    _, (same,) = roll_out([4], [["a"], ["b"], ["c"], ["d"]], history=History(window=0), limits=limits)
    assert same == whole
    first = len(whole.turns[0].context_ids)
    tight = RolloutLimits(max_turns=9, max_turn_tokens=99, max_trajectory_tokens=first + 4)
    _, (cut,) = roll_out([4], [["a"], ["b"]], history=History(window=0), limits=tight)
    assert (cut.end_reason, len(cut.turns), cut.segments) == (EndReason.MAX_TOKENS, 1, (0,))
    # The sequence that would have begun never did.
    assert cut.turns[0].drift is Drift.CLEAN


def test_an_environment_may_write_the_next_prompt_itself():
    renderer, (trajectory,) = roll_out([4], [["a"], ["b", "c"], ["d"]], factory=Prompting)
    assert trajectory.segments == (0, 1, 3)
    assert contexts(renderer, trajectory)[1] == "<|im_start|>user\nturn 1<|im_end|>\n<|im_start|>assistant\n"
    assert (
        contexts(renderer, trajectory)[2] == "\n<|im_start|>user\nroom 2<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [turn.drift for turn in trajectory.turns] == [Drift.FORK, Drift.CLEAN, Drift.FORK, Drift.CLEAN]


def test_a_template_that_strips_thinking_begins_a_sequence_where_it_does():
    thinking = "<think>\n1+2\n</think>\n\ngo"
    scripts = [[thinking], ["plain", thinking], ["end"]]
    renderer, (trajectory,) = roll_out([4], scripts, template="qwen3-strip", rewrites="fork")
    assert trajectory.segments == (0, 1, 3)
    assert [turn.drift for turn in trajectory.turns] == [Drift.FORK, Drift.CLEAN, Drift.FORK, Drift.CLEAN]
    second = contexts(renderer, trajectory)[1]
    assert second.startswith(
        "<|im_start|>system\nPlay.<|im_end|>\n<|im_start|>user\nFind the mug.<|im_end|>\n"
    )
    assert second.endswith(
        "<|im_start|>assistant\ngo<|im_end|>\n<|im_start|>user\nroom 1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "1+2" in renderer.decode(trajectory.turns[0].sampled_ids)
    metrics = rollout_metrics([trajectory])
    assert {key: metrics[key] for key in metrics if key.startswith("drift/")} == {
        "drift/clean": 0.5,
        "drift/realign": 0.0,
        "drift/fork": 0.5,
    }


def test_forks_are_only_where_something_is_rewritten():
    scripts = [["<think>\n1\n</think>\n\na", "b", "c"]]
    _, (kept,) = roll_out([3], scripts, template="qwen3", rewrites="fork")
    _, (refusing,) = roll_out([3], scripts, template="qwen3")
    assert kept == refusing
    assert kept.segments == (0,)


def test_sampled_log_probs_are_those_of_each_sequence_by_itself(tiny_model, tiny_tokenizer):
    renderer = ChatRenderer(tiny_tokenizer, observation_roles=("user",))
    with ToolRunner((), timeout_s=5.0) as runner:
        trajectories = collect(
            [Task(task_id=str(n), messages=OPENING, fields={"turns": n}) for n in (3, 2)],
            engine=HFEngine(tiny_model, pad_id=renderer.pad_id),
            renderer=renderer,
            environment_factory=Maze,
            limits=RolloutLimits(max_turns=9, max_turn_tokens=12, max_trajectory_tokens=400),
            params=SamplingParams(max_turn_tokens=12, stop_ids=renderer.stop_ids),
            seed=4,
            runner=runner,
            history=History(window=1),
        )
    assert [trajectory.segments for trajectory in trajectories] == [(0, 1, 2), (0, 1)]
    for trajectory in trajectories:
        for sequence in tokenize_trajectory(trajectory):
            with torch.no_grad():
                log_probs = tiny_model(sequence.input_ids[None]).logits[0, :-1].log_softmax(-1)
            expected = log_probs.gather(-1, sequence.input_ids[1:, None])[:, 0]
            at_response = sequence.response_mask[1:]
            assert at_response.any()
            assert torch.allclose(sequence.log_probs[1:][at_response], expected[at_response], atol=1e-5)
    # A later sequence has draws of its own.
    assert trajectories[0].turns[0].sampled_ids != trajectories[0].turns[1].sampled_ids
