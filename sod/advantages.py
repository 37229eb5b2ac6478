"""Advantages of trajectories from their rewards: relative to the other attempts at the same task."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev

from sod.types import Trajectory

STD_EPSILON = 1e-6
"""Added to a group's standard deviation, so that equal rewards give advantage 0."""


def group_advantages(trajectories: Sequence[Trajectory]) -> list[float]:
    """Standardise rewards within each group: A_i = (r_i - mean r) / (std r + 1e-6).

    The standard deviation is that of the sample (divisor G - 1). A group of equal rewards gives exactly 0,
    and so does a group of one: there is nothing to compare it with.

    Args:
        trajectories: Of one rollout round; `group_id` says which belong together.

    Returns:
        One advantage per trajectory, in order.

    Raises:
        ValueError: For a reward that is not finite, naming the trajectory.

    Source: arXiv 2605.07725, equation (2); the divisor is that of torch.std, as in the released code.
    """
    return [own[0] for own in _standardised(trajectories, [[one.reward] for one in trajectories])]


def turn_advantages(trajectories: Sequence[Trajectory], *, penalty: float) -> list[list[float]]:
    """Standardise within each group, turn by turn, where a turn pays for its own invalid action alone.

    A turn's score is the reward of its trajectory without any penalty, minus the penalty if the turn itself
    was answered with an error. All turns of a group's trajectories are compared with each other, so a longer
    attempt has more say in the mean.

    Args:
        trajectories: Of one rollout round, their rewards with every penalty taken off.
        penalty: What an invalid action costs.

    Returns:
        One advantage per turn of each trajectory.

    Raises:
        ValueError: For a reward that is not finite, naming the trajectory.

    Source: the code that arXiv 2606.27814 is built on, one row per turn.
    """
    scores = []
    for trajectory in trajectories:
        is_invalid = [any(result.is_error for result in turn.results) for turn in trajectory.turns]
        bare = trajectory.reward + penalty * sum(is_invalid)
        scores.append([bare - penalty * one for one in is_invalid])
    return _standardised(trajectories, scores)


def _standardised(trajectories: Sequence[Trajectory], scores: Sequence[Sequence[float]]) -> list[list[float]]:
    groups: dict[int, list[float]] = defaultdict(list)
    for index, (trajectory, own) in enumerate(zip(trajectories, scores, strict=True)):
        if not math.isfinite(trajectory.reward):
            raise ValueError(
                f"advantages: trajectory {index} (task {trajectory.task_id!r}) has reward "
                f"{trajectory.reward!r}; wanted a finite number, look at the reward function."
            )
        groups[trajectory.group_id] += own
    scales = {group: (fmean(rewards), _spread(rewards)) for group, rewards in groups.items()}
    return [
        [_scaled(score, *scales[trajectory.group_id]) for score in own]
        for trajectory, own in zip(trajectories, scores, strict=True)
    ]


def _spread(rewards: Sequence[float]) -> float:
    return stdev(rewards) if len(rewards) > 1 and len(set(rewards)) > 1 else 0.0


def _scaled(reward: float, mean: float, spread: float) -> float:
    return (reward - mean) / (spread + STD_EPSILON) if spread else 0.0
