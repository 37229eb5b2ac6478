"""Who is a usable guide: from states that the student visits, who gets to the right answer.

The student is rolled out under faults; each attempt is cut before a turn drawn at random, and from there
student and teacher go on greedily with tools that no longer fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from benchmarks.evidence.states import STATES, turn_states
from sod.assembly import assemble_policy
from sod.config import RunConfig
from sod.engines.base import Generation, Respond, RolloutEngine, SamplingParams, WeightSource
from sod.envs.ledger_env import LedgerEnvironment, LedgerSection
from sod.envs.ledger_faults import LedgerFaults
from sod.errors import RolloutError
from sod.loop.sampling import Sampler, make_runner, make_sampler
from sod.types import Task, ToolResult, Trajectory

Progress = Callable[[int, int], None]
_HEALTHY_FROM = "healthy_from"


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """An attempt up to a state.

    Attributes:
        task: What was attempted.
        attempt: The whole attempt.
        num_turns: Turns before the state.
        state: Which, one of `STATES`.
    """

    task: Task
    attempt: Trajectory
    num_turns: int
    state: str


class ContinuingEngine:
    """Plays the beginnings of stored attempts, then lets another engine go on.

    Attributes:
        policy_version: That of the engine that goes on.
    """

    policy_version: int

    def __init__(self, engine: RolloutEngine, beginnings: Sequence[Beginning]) -> None:
        """Take the engine, and one beginning per row."""
        self.policy_version = engine.policy_version
        self._engine = engine
        self._beginnings = beginnings

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Sample all rows to their end; see `sod.engines.base.RolloutEngine.rollout`."""
        if len(prompts) != len(self._beginnings):
            raise RolloutError(f"ContinuingEngine: {len(prompts)} rows, {len(self._beginnings)} beginnings.")
        longer = [
            self._played(row, prompt, beginning, respond)
            for row, (prompt, beginning) in enumerate(zip(prompts, self._beginnings, strict=True))
        ]
        self._engine.rollout(longer, respond, params, seed=seed)

    def _played(
        self, row: int, prompt: tuple[int, ...], beginning: Beginning, respond: Respond
    ) -> tuple[int, ...]:
        ids = tuple(prompt)
        for turn in beginning.attempt.turns[: beginning.num_turns]:
            played = Generation(
                sampled_ids=turn.sampled_ids, log_probs=turn.sampled_log_probs, stop_reason=turn.stop_reason
            )
            answer = respond([(row, played)])[0]
            if answer is None:
                raise RolloutError(f"ContinuingEngine: row {row} is over within its beginning.")
            ids = (*ids, *turn.sampled_ids, *answer)
        return ids

    def update_weights(self, model_or_state: WeightSource, policy_version: int) -> None:
        """Pass weights on."""
        self._engine.update_weights(model_or_state, policy_version)
        self.policy_version = policy_version

    def score(self, ids: Sequence[int]) -> tuple[float, ...] | None:
        """Let the engine score."""
        return self._engine.score(ids)

    def close(self) -> None:
        """Do nothing; the engine belongs to whoever made it."""


class HealedLedger(LedgerEnvironment):
    """The ledger whose tools stop failing at a call that the task names."""

    def _with_fault(self, result: ToolResult) -> ToolResult:
        faults = self._faults
        if self._num_right_calls >= self._task.fields[_HEALTHY_FROM]:
            self._faults = replace(faults, rate=0.0)
        return super()._with_fault(result)


def rescue_rates(
    configs: Mapping[str, RunConfig], num_states: int, progress: Progress
) -> dict[str, dict[str, list[int]]]:
    """Measure rescue rates.

    Args:
        configs: "student" and "teacher", both with the faults and the training questions.
        num_states: Attempts that are begun.
        progress: Called now and then.

    Returns:
        For each state, by policy: right answers, attempts.
    """
    beginnings: list[Beginning] = []
    rates: dict[str, dict[str, list[int]]] = {state: {} for state in STATES}
    for name in ("student", "teacher"):
        with ExitStack() as stack:
            sampler, tasks, section = _policy(configs[name], stack)
            if not beginnings:
                beginnings = _beginnings(sampler, tasks[:num_states], section.faults, progress)
            finished = _finished(sampler, beginnings, section, progress)
        for beginning, attempt in zip(beginnings, finished, strict=True):
            counts = rates[beginning.state].setdefault(name, [0, 0])
            counts[0] += attempt.is_success
            counts[1] += 1
    return {state: counts for state, counts in rates.items() if counts}


def _policy(config: RunConfig, stack: ExitStack) -> tuple[Sampler, Sequence[Task], LedgerSection]:
    torch.set_num_threads(config.trainer.num_threads)
    parts = assemble_policy(config, "train")
    environment = parts.environment
    if environment is None or not isinstance(config.environment, LedgerSection):
        raise RolloutError("rescue_rates: wanted the ledger environment.")
    stack.callback(environment.close)
    sampler = make_sampler(config, parts, stack.enter_context(make_runner(config, parts)))
    sampler.take_weights(parts.student, 0)
    return sampler, parts.tasks, config.environment


def _beginnings(
    sampler: Sampler, tasks: Sequence[Task], faults: LedgerFaults, progress: Progress
) -> list[Beginning]:
    generator = random.Random("states")
    attempts = sampler.rollout(tasks, 0, progress)
    made = []
    for task, attempt in zip(tasks, attempts, strict=True):
        states = turn_states(attempt, task, faults)
        place = generator.randrange(len(states))
        made.append(Beginning(task=task, attempt=attempt, num_turns=place, state=states[place]))
    return made


def _finished(
    sampler: Sampler, beginnings: Sequence[Beginning], section: LedgerSection, progress: Progress
) -> Sequence[Trajectory]:
    """Go on greedily from every beginning, with tools that no longer fail."""
    tasks = [_healed(beginning, section.faults) for beginning in beginnings]
    made = sampler.factory

    def factory(task: Task) -> HealedLedger:
        return HealedLedger(task, made(task).tools, section)

    going_on = replace(sampler, engine=ContinuingEngine(sampler.engine, beginnings), factory=factory)
    return going_on.evaluate(tasks, 0, progress).trajectories


def _healed(beginning: Beginning, faults: LedgerFaults) -> Task:
    task = beginning.task
    played = [result for turn in beginning.attempt.turns[: beginning.num_turns] for result in turn.results]
    number = 0
    for result in played:
        is_fault = faults.kind(task.task_id, number) == "timeout" and str(result.outcome) == "timeout"
        number += is_fault or not result.is_error
    return replace(task, fields={**task.fields, _HEALTHY_FROM: number})
