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
    groups: dict[int, list[float]] = defaultdict(list)
    for index, trajectory in enumerate(trajectories):
        if not math.isfinite(trajectory.reward):
            raise ValueError(
                f"group_advantages: trajectory {index} (task {trajectory.task_id!r}) has reward "
                f"{trajectory.reward!r}; wanted a finite number, look at the reward function."
            )
        groups[trajectory.group_id].append(trajectory.reward)
    scales = {group: (fmean(rewards), _spread(rewards)) for group, rewards in groups.items()}
    return [_standardised(trajectory.reward, *scales[trajectory.group_id]) for trajectory in trajectories]


def _spread(rewards: Sequence[float]) -> float:
    return stdev(rewards) if len(rewards) > 1 and len(set(rewards)) > 1 else 0.0


def _standardised(reward: float, mean: float, spread: float) -> float:
    return (reward - mean) / (spread + STD_EPSILON) if spread else 0.0
