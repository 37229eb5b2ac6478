"""Turns what an attempt earned into what training sees, as `[reward]` says.

SOD's release: an attempt that earned nothing counts -1, or up to -0.6 by a bonus for every turn with a tool
call, and a linear penalty holds the response below its limit; docs/rewards.md has the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sod.code_tests import last_program
from sod.config_rewards import RewardSection
from sod.parsing import ParsedTurn
from sod.rewards import last_boxed
from sod.types import ToolOutcome, Trajectory, Turn

_NO_TOOL_REACHED = frozenset({ToolOutcome.INVALID_JSON, ToolOutcome.UNKNOWN_TOOL, ToolOutcome.BAD_ARGS})


def shape_rewards(
    trajectories: Sequence[Trajectory], parse: Callable[[tuple[int, ...]], ParsedTurn], section: RewardSection
) -> list[Trajectory]:
    """Shape the rewards of a rollout.

    Args:
        trajectories: As the environment scored them.
        parse: Reads the sampled ids of a turn (`ChatRenderer.parse`).
        section: What to add and take away.

    Returns:
        The same attempts with new rewards; the difference stands in the last turn. Whether an attempt counts
        as solved stays what the environment says.
    """
    return [_shaped(trajectory, parse, section) for trajectory in trajectories]


def shaped_reward(
    reward: float, *, final: ParsedTurn, num_tool_turns: int, num_tokens: int, section: RewardSection
) -> float:
    """Shape one reward.

    Args:
        reward: What the environment gave.
        final: The last turn; one with calls holds no answer.
        num_tool_turns: Turns whose calls reached a tool.
        num_tokens: Tokens after the prompt, observations included.
        section: What to add and take away.

    Returns:
        The new reward: `wrong_score` for 0; `malformed_score` without the form; below 0,
        min(`tool_bonus_ceiling`, score + `tool_bonus` x turns); minus
        `overlong_penalty` x max(0, num_tokens - (limit - buffer)) / buffer.
    """
    score = section.wrong_score if reward == 0.0 else reward
    if section.malformed_score is not None and not _has_form(final, section.answer_format):
        score = section.malformed_score
    if score < 0 and section.tool_bonus_ceiling is not None:
        score = min(section.tool_bonus_ceiling, score + section.tool_bonus * num_tool_turns)
    if section.overlong_limit is not None and section.overlong_buffer is not None:
        excess = num_tokens - (section.overlong_limit - section.overlong_buffer)
        score -= section.overlong_penalty * max(0.0, excess / section.overlong_buffer)
    return score


def _shaped(
    trajectory: Trajectory, parse: Callable[[tuple[int, ...]], ParsedTurn], section: RewardSection
) -> Trajectory:
    last = trajectory.turns[-1]
    # What opens a sequence is a prompt, all between is observations.
    num_tokens = trajectory.num_sampled_tokens + sum(
        len(turn.context_ids)
        for index, turn in enumerate(trajectory.turns)
        if index not in trajectory.segments
    )
    reward = shaped_reward(
        trajectory.reward,
        final=parse(last.sampled_ids),
        num_tool_turns=sum(map(_reached_a_tool, trajectory.turns)),
        num_tokens=num_tokens,
        section=section,
    )
    changed = replace(last, reward=last.reward + (reward - trajectory.reward))
    return replace(trajectory, reward=reward, turns=(*trajectory.turns[:-1], changed))


def _reached_a_tool(turn: Turn) -> bool:
    return any(result.outcome not in _NO_TOOL_REACHED for result in turn.results)


def _has_form(final: ParsedTurn, wanted: str) -> bool:
    if final.calls:
        return False
    if wanted == "boxed":
        return last_boxed(final.content) is not None
    if wanted == "code":
        return last_program(final.content) is not None
    return bool(final.content)
