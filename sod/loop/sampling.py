"""Rollouts of the student as it stands, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sod.assembly import RunParts
from sod.chat import ChatRenderer
from sod.config import RunConfig
from sod.config_engines import ReplaySection
from sod.engines.base import RolloutEngine, SamplingParams
from sod.engines.factory import make_engine, weight_bound
from sod.engines.replay import ReplayEngine
from sod.engines.weight_check import update_and_check
from sod.envs.base import EnvironmentFactory
from sod.errors import ConfigError
from sod.evaluate import EvalResult, summarise
from sod.reward_shaping import shape_rewards
from sod.rewards import last_boxed
from sod.rollout.collector import collect
from sod.rollout.history import History
from sod.rollout.limits import RolloutLimits
from sod.rollout.privilege import Privilege, privilege_of
from sod.rollout.store import read_trajectories, round_file
from sod.seeding import derive_seed
from sod.tools import ToolRunner
from sod.types import Task, Trajectory

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """All that a rollout needs besides the tasks.

    Attributes:
        engine: Samples, with the weights that it took last.
        renderer: Text to ids and back.
        factory: Makes the environment of a trajectory.
        runner: Runs tool calls.
        config: Limits, temperatures and the root seed.
        vocab_size: Ids that are tokens.
        device_type: Device that autocast acts on.
        autocast_dtype: Type of matrix products; None for the weights' own.
    """

    engine: RolloutEngine
    renderer: ChatRenderer
    factory: EnvironmentFactory
    runner: ToolRunner
    config: RunConfig
    vocab_size: int
    device_type: str = "cpu"
    autocast_dtype: torch.dtype | None = None

    def take_weights(self, model: PreTrainedModel, policy_version: int) -> float:
        """Bring the student's weights into the engine, and prove that they arrived.

        Args:
            model: The student.
            policy_version: Number of optimiser updates behind it; nothing is done where the engine has them.

        Returns:
            Largest gap between engine and student on a fixed text, nats.

        Raises:
            WeightSyncError: Other weights are in the engine.
        """
        if self.engine.policy_version == policy_version:
            return 0.0
        return update_and_check(
            self.engine,
            model,
            policy_version,
            vocab_size=self.vocab_size,
            bound=weight_bound(self.config.engine),
        )

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
        privilege = privilege_of(self.config.algorithm)
        if isinstance(self.engine, ReplayEngine) and isinstance(self.config.engine, ReplaySection):
            self.engine.load(read_trajectories(round_file(self.config.engine.run, round_index)))
        trajectories = self._collect(
            tasks, settings.temperature, settings.top_p, settings.num_samples, seed, progress, privilege
        )
        return shape_rewards(trajectories, self.renderer.parse, self.config.reward)

    def evaluate(
        self, tasks: Sequence[Task], round_index: int, progress: Progress | None = None
    ) -> EvalResult:
        """Evaluate on held-out tasks; `round_index` seeds the draws where they are not greedy."""
        settings = self.config.evaluation
        seed = derive_seed(self.config.run.seed, "evaluation", round_index)
        attempts = self._collect(
            tasks, settings.temperature, settings.top_p, settings.num_samples, seed, progress
        )
        return summarise(attempts, self.answers(attempts))

    def answers(self, attempts: Sequence[Trajectory]) -> list[str | None]:
        """Read the final answer in the box of each attempt; None where there is none."""
        finals = [self.renderer.parse(attempt.turns[-1].sampled_ids) for attempt in attempts]
        return [None if final.calls else last_boxed(final.content) for final in finals]

    def _collect(
        self,
        tasks: Sequence[Task],
        temperature: float,
        top_p: float,
        num_samples: int,
        seed: int,
        progress: Progress | None,
        privilege: Privilege | None = None,
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
                history=History(window=None if rollout.history == "full" else rollout.history_window or 0),
                privilege=privilege,
                progress=progress,
                environment_timeout_s=rollout.environment_timeout_s or None,
            )


def make_sampler(config: RunConfig, parts: RunParts, runner: ToolRunner) -> Sampler:
    """Make the sampler of a run; the caller closes its engine.

    Args:
        config: The settings.
        parts: Student, renderer and environment.
        runner: Runs tool calls.

    Returns:
        The sampler; `take_weights` before the first rollout.

    Raises:
        ConfigError: If there is no environment, or the engine cannot be had here.
        ServiceUnavailableError: If the engine's server cannot be reached.
    """
    if parts.environment is None:
        raise ConfigError("a rollout needs an environment, but there is none; give [environment]")
    return Sampler(
        engine=make_engine(
            config.engine,
            parts.student,
            pad_id=parts.pad_id,
            vocab_size=parts.vocab_size,
            max_batch=config.rollout.max_batch,
            max_total_tokens=config.rollout.max_trajectory_tokens,
        ),
        renderer=parts.renderer,
        factory=parts.environment.factory,
        runner=runner,
        config=config,
        vocab_size=parts.vocab_size,
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
