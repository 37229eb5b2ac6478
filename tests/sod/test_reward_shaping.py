"""Shaping: each term by itself, SOD's release as a whole, and settings that cannot be meant."""

from __future__ import annotations

import pytest

from sod.config_file import config_from_dict
from sod.config_rewards import RewardSection
from sod.errors import ConfigError
from sod.parsing import ParsedTurn
from sod.reward_shaping import shape_rewards, shaped_reward
from sod.types import ToolCall, ToolOutcome, ToolResult, Trajectory, Turn

RELEASE = {
    "wrong_score": -1.0,
    "answer_format": "boxed",
    "malformed_score": -1.0,
    "tool_bonus": 0.1,
    "tool_bonus_ceiling": -0.6,
    "overlong_limit": 20480,
    "overlong_buffer": 1024,
}
BOXED = ParsedTurn(text="", content=r"\boxed{1}")
PLAIN = ParsedTurn(text="", content="one")
EMPTY = ParsedTurn(text="", content="")
CODE = ParsedTurn(text="", content="```python\nx = 1\n```")
CALL = ParsedTurn(text="", content=r"\boxed{1}", calls=(ToolCall(name="add", arguments={}),))


def shaped(reward, settings, final=BOXED, tool_turns=0, tokens=0):
    section = RewardSection(**settings)
    return shaped_reward(reward, final=final, num_tool_turns=tool_turns, num_tokens=tokens, section=section)


@pytest.mark.parametrize(
    ("reward", "final", "tool_turns", "tokens", "expected"),
    [
        (1.0, BOXED, 5, 100, 1.0),
        (0.0, BOXED, 0, 100, -1.0),
        (0.0, BOXED, 3, 100, -0.7),
        (0.0, BOXED, 9, 100, -0.6),
        (0.0, PLAIN, 1, 100, -0.9),
        (1.0, PLAIN, 0, 100, -1.0),
        (1.0, BOXED, 0, 20480 - 1024, 1.0),
        (1.0, BOXED, 0, 20480 - 512, 0.5),
        (1.0, BOXED, 0, 20480, 0.0),
        (0.0, BOXED, 2, 20480, -1.8),
    ],
)
def test_settings_of_the_release(reward, final, tool_turns, tokens, expected):
    assert shaped(reward, RELEASE, final, tool_turns, tokens) == pytest.approx(expected)


@pytest.mark.parametrize("reward", [0.0, 0.3, 1.0, -2.0])
def test_nothing_set_changes_nothing(reward):
    assert shaped(reward, {}, final=EMPTY, tool_turns=3, tokens=10**6) == reward


@pytest.mark.parametrize(
    ("answer_format", "good", "bad"),
    [("answered", PLAIN, EMPTY), ("boxed", BOXED, PLAIN), ("code", CODE, BOXED), ("answered", PLAIN, CALL)],
)
def test_each_form_of_an_answer(answer_format, good, bad):
    settings = {"answer_format": answer_format, "malformed_score": -3.0}
    assert shaped(0.5, settings, final=good) == 0.5
    assert shaped(0.5, settings, final=bad) == -3.0


def test_the_bonus_never_touches_a_score_that_is_not_below_zero():
    settings = {"tool_bonus": 0.1, "tool_bonus_ceiling": -0.6}
    assert shaped(0.0, settings, tool_turns=4) == 0.0
    assert shaped(-1.0, settings, tool_turns=2) == pytest.approx(-0.8)


def test_overlong_penalty_has_a_size():
    settings = {"overlong_limit": 100, "overlong_buffer": 50, "overlong_penalty": 2.0}
    assert shaped(1.0, settings, tokens=75) == 0.0
    assert shaped(1.0, settings, tokens=150) == -3.0


def result(outcome):
    return ToolResult(name="add", outcome=outcome, text="")


def test_trajectories_count_turns_that_reached_a_tool_and_tokens_behind_the_prompt():
    turns = (
        Turn(
            context_ids=(1,) * 500,
            sampled_ids=(2,) * 10,
            results=(result(ToolOutcome.OK), result(ToolOutcome.OK)),
        ),
        Turn(context_ids=(1,) * 20, sampled_ids=(2,) * 10, results=(result(ToolOutcome.INVALID_JSON),)),
        Turn(context_ids=(1,) * 20, sampled_ids=(2,) * 10, results=(result(ToolOutcome.TOOL_ERROR),)),
        Turn(context_ids=(1,) * 20, sampled_ids=(3,) * 10, reward=0.0),
    )
    section = RewardSection(
        wrong_score=-1.0,
        tool_bonus=0.1,
        tool_bonus_ceiling=-0.6,
        overlong_limit=100,
        overlong_buffer=50,
    )
    trajectory = Trajectory(task_id="t", turns=turns, is_success=False)
    (new,) = shape_rewards([trajectory], lambda ids: BOXED if ids[0] == 3 else EMPTY, section)
    assert new.reward == pytest.approx(-0.8 - 1.0)
    assert [turn.reward for turn in new.turns] == [0.0, 0.0, 0.0, new.reward]
    assert new.turns[:3] == turns[:3]
    (per_turn,) = shape_rewards(
        [Trajectory(task_id="t", turns=turns, segments=(0, 1, 2, 3))], lambda ids: BOXED, section
    )
    # One sequence per turn: every context is a prompt, which leaves 40 sampled tokens.
    assert per_turn.reward == pytest.approx(-0.8)
    assert shape_rewards([trajectory], lambda ids: EMPTY, RewardSection()) == [trajectory]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"malformed_score": -1.0}, r"malformed_score and answer_format belong together"),
        ({"answer_format": "boxed"}, r"malformed_score and answer_format belong together"),
        ({"tool_bonus": 0.1}, r"tool_bonus_ceiling and tool_bonus belong together"),
        ({"tool_bonus_ceiling": -0.6}, r"tool_bonus_ceiling and tool_bonus belong together"),
        (
            {"tool_bonus": 0.1, "tool_bonus_ceiling": 0.0},
            r"tool_bonus_ceiling = 0\.0: wanted a value below 0",
        ),
        ({"overlong_limit": 5}, r"overlong_buffer and overlong_limit belong together"),
        ({"overlong_buffer": 5}, r"overlong_buffer and overlong_limit belong together"),
        ({"overlong_penalty": 2.0}, r"overlong_penalty is read with overlong_limit only"),
        (
            {"overlong_limit": 5, "overlong_buffer": 6},
            r"overlong_buffer = 6: wanted at most overlong_limit = 5",
        ),
    ],
)
def test_settings_that_another_makes_void_are_refused(settings, message):
    with pytest.raises(ConfigError, match=rf"\[reward\] {message}"):
        RewardSection(**settings)


def test_the_section_is_read_from_a_file(tmp_path):
    raw = {"run": {"output": "out"}, "trainer": {"rounds": 1}, "reward": dict(RELEASE)}
    assert config_from_dict(raw, base=tmp_path).reward == RewardSection(**RELEASE)
    raw["reward"]["tool_bonuss"] = 1
    with pytest.raises(ConfigError, match=r"unknown key \[reward\] tool_bonuss; did you mean 'tool_bonus'"):
        config_from_dict(raw, base=tmp_path)
