"""Rolls tasks out: engine, tools and environments in, trajectories out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sod.chat import ChatRenderer
from sod.engines.base import RolloutEngine, SamplingParams
from sod.envs.base import EnvironmentFactory
from sod.types import Task, Trajectory

if TYPE_CHECKING:
    from sod.tools import ToolRunner


@dataclass(frozen=True, kw_only=True)
class RolloutLimits:
    """What bounds one trajectory.

    Attributes:
        max_turns: Assistant turns.
        max_turn_tokens: Sampled tokens of one turn, stop token included.
        max_trajectory_tokens: All tokens: prompt, turns and observations.
    """

    max_turns: int
    max_turn_tokens: int
    max_trajectory_tokens: int


def collect(
    tasks: Sequence[Task],
    *,
    engine: RolloutEngine,
    renderer: ChatRenderer,
    environment_factory: EnvironmentFactory,
    limits: RolloutLimits,
    params: SamplingParams,
    seed: int,
    runner: ToolRunner,
    num_samples: int = 1,
    max_attempts: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trajectory]:
    """Roll every task out `num_samples` times.

    Returns:
        Trajectories in the order of tasks x samples; `group_id` is the index of the task.
    """
    raise NotImplementedError
