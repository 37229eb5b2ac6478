"""Rollouts of the student as it stands, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sod.assembly import RunParts
from sod.chat import ChatRenderer
from sod.config import RunConfig
from sod.engines.base import RolloutEngine, SamplingParams
from sod.engines.hf import HFEngine
from sod.envs.base import EnvironmentFactory
from sod.errors import ConfigError
from sod.evaluate import EvalResult, summarise
from sod.reward_shaping import shape_rewards
from sod.rollout.collector import RolloutLimits, collect
from sod.seeding import derive_seed
from sod.tools import ToolRunner
from sod.types import Task, Trajectory

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """All that a rollout needs besides the tasks.

    Attributes:
        engine: Samples; shares the student's weights.
        renderer: Text to ids and back.
        factory: Makes the environment of a trajectory.
        runner: Runs tool calls.
        config: Limits, temperatures and the root seed.
        device_type: Device that autocast acts on.
        autocast_dtype: Type of matrix products; None for the weights' own.
    """

    engine: RolloutEngine
    renderer: ChatRenderer
    factory: EnvironmentFactory
    runner: ToolRunner
    config: RunConfig
    device_type: str = "cpu"
    autocast_dtype: torch.dtype | None = None

    def rollout(
        self, tasks: Sequence[Task], round_index: int, progress: Progress | None = None
    ) -> list[Trajectory]:
        """Roll out the tasks of a training round.

        Args:
            tasks: The tasks.
            round_index: Seeds the draws.
            progress: Called with trajectories done and in all.

        Returns:
            `num_samples` trajectories per task, in order, their rewards shaped as [reward] says.
        """
        settings = self.config.rollout
        seed = derive_seed(self.config.run.seed, "rollout", round_index)
        trajectories = self._collect(
            tasks, settings.temperature, settings.top_p, settings.num_samples, seed, progress
        )
        return shape_rewards(trajectories, self.renderer.parse, self.config.reward)

    def evaluate(
        self, tasks: Sequence[Task], round_index: int, progress: Progress | None = None
    ) -> EvalResult:
        """Evaluate on held-out tasks; `round_index` seeds the draws where they are not greedy."""
        settings = self.config.evaluation
        seed = derive_seed(self.config.run.seed, "evaluation", round_index)
        return summarise(
            self._collect(tasks, settings.temperature, settings.top_p, settings.num_samples, seed, progress)
        )

    def _collect(
        self,
        tasks: Sequence[Task],
        temperature: float,
        top_p: float,
        num_samples: int,
        seed: int,
        progress: Progress | None,
    ) -> list[Trajectory]:
        rollout = self.config.rollout
        params = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_turn_tokens=rollout.max_turn_tokens,
            stop_ids=self.renderer.stop_ids,
            max_total_tokens=rollout.max_trajectory_tokens,
        )
        limits = RolloutLimits(
            max_turns=rollout.max_turns,
            max_turn_tokens=rollout.max_turn_tokens,
            max_trajectory_tokens=rollout.max_trajectory_tokens,
        )
        with torch.autocast(
            self.device_type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        ):
            return collect(
                tasks,
                engine=self.engine,
                renderer=self.renderer,
                environment_factory=self.factory,
                limits=limits,
                params=params,
                seed=seed,
                runner=self.runner,
                num_samples=num_samples,
                progress=progress,
            )


def make_sampler(config: RunConfig, parts: RunParts, runner: ToolRunner) -> Sampler:
    """Make the sampler of a run, its engine on the student's own weights.

    Args:
        config: The settings.
        parts: Student, renderer and environment.
        runner: Runs tool calls.

    Returns:
        The sampler.

    Raises:
        ConfigError: If there is no environment.
    """
    if parts.environment is None:
        raise ConfigError("a rollout needs an environment, but there is none; give [environment]")
    return Sampler(
        engine=HFEngine(
            parts.student,
            pad_id=parts.pad_id,
            vocab_size=parts.vocab_size,
            max_batch=config.rollout.max_batch,
        ),
        renderer=parts.renderer,
        factory=parts.environment.factory,
        runner=runner,
        config=config,
        device_type=parts.student.device.type,
        autocast_dtype=torch.bfloat16 if config.trainer.precision == "bfloat16" else None,
    )


def make_runner(config: RunConfig, parts: RunParts) -> ToolRunner:
    """Make the runner of a run's tool calls; the caller closes it."""
    tools = parts.environment.tools if parts.environment is not None else ()
    return ToolRunner(
        tools,
        timeout_s=config.rollout.tool_timeout_s,
        max_output_chars=config.rollout.max_observation_chars,
        num_threads=config.rollout.num_tool_threads,
    )
