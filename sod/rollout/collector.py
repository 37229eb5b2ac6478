"""Rolls tasks out: engine, tools and environments in, trajectories out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from sod.chat import ChatRenderer
from sod.engines.base import Generation, RolloutEngine, SamplingParams
from sod.engines.sampling import mix_seed
from sod.envs.base import Environment, EnvironmentFactory, StepResult
from sod.errors import RolloutError
from sod.parsing import ParsedTurn
from sod.rollout.asking import Asker, HeldEnvironment
from sod.rollout.history import History, PastTurn, summary_prompt, text_of
from sod.rollout.limits import RolloutLimits
from sod.rollout.privilege import Privilege
from sod.tools import ToolUnavailableError
from sod.types import (
    Drift,
    EndReason,
    Message,
    Task,
    ToolCall,
    ToolOutcome,
    Trajectory,
    Turn,
)

if TYPE_CHECKING:
    from sod.tools import ToolRunner

Progress = Callable[[int, int], None]
"""Called with the number of finished trajectories and the number of all."""


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
    history: History | None = None,
    privilege: Privilege | None = None,
    progress: Progress | None = None,
    environment_timeout_s: float | None = 3600.0,
) -> list[Trajectory]:
    """Roll every task out `num_samples` times.

    The calls of all rows whose turns ended at one decode step run together, and so do the answers of their
    environments. Every environment answers its last turn too, limits or not, so that an action in it counts.

    A row whose next turn begins a new sequence (a summary instead of a growing conversation, a template that
    rewrote its history, a prompt of the environment) leaves the engine's batch and comes back as a row of
    its own when the batch is over; its trajectory has one segment more.

    Args:
        tasks: What to attempt.
        engine: Samples the turns.
        renderer: Made for the engine's tokenizer.
        environment_factory: Makes one environment per attempt.
        limits: Bounds of a trajectory.
        params: How to sample, with the renderer's stop_ids.
        seed: Makes the rollout repeatable, as far as tools and environments are.
        runner: Makes the calls, with the tools of each environment, and asks the environments.
        num_samples: Attempts per task.
        max_attempts: How often a trajectory is tried whose tool or environment is unavailable.
        history: What the student reads of its earlier turns; None is everything, in one growing sequence.
        privilege: What the teacher is told beyond that; None lets it read the same.
        progress: Told about every finished trajectory.
        environment_timeout_s: Seconds in which an environment must begin or answer a turn; one that does not
            is unavailable. None asks them one after the other in the caller's thread.

    Returns:
        Trajectories in the order of tasks x samples; `group_id` is the index of the task.

    Raises:
        ValueError: An argument is out of range, or the stop_ids are not the renderer's.
        RolloutError: A prompt leaves no room for a turn, or a tool stayed unavailable.
    """
    _check_arguments(params, renderer, num_samples, max_attempts)
    limits = limits.within(params)
    params = replace(
        params, max_turn_tokens=limits.max_turn_tokens, max_total_tokens=limits.max_trajectory_tokens
    )
    session = _Session(
        [(index, task) for index, task in enumerate(tasks) for _ in range(num_samples)],
        engine=engine,
        renderer=renderer,
        environment_factory=environment_factory,
        limits=limits,
        runner=runner,
        history=history or History(),
        privilege=privilege,
        progress=progress,
        asker=Asker(runner, environment_timeout_s),
    )
    for attempt in range(max_attempts):
        session.run(params, mix_seed(seed, attempt))
        if session.is_complete:
            return session.trajectories()
    raise RolloutError(
        f"collect: a tool stayed unavailable for {session.num_pending} of {len(tasks) * num_samples} "
        f"trajectories in {max_attempts} attempts; it last answered {session.last_unavailable!r}. Bring it "
        "back and run again."
    )


@dataclass(kw_only=True)
class _Row:
    """One attempt at a task while it runs."""

    slot: int
    task: Task
    held: HeldEnvironment
    # Of the sequence that grows now.
    context_ids: tuple[int, ...] = ()
    teacher_context_ids: tuple[int, ...] | None = None
    context: tuple[Message, ...] = ()
    last_id: int | None = None
    num_tokens: int = 0
    conversation: tuple[Message, ...] = ()
    told: tuple[Message, ...] = ()
    is_waiting: bool = False
    # Of the whole attempt.
    opening: tuple[Message, ...] = ()
    past: list[PastTurn] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    segments: list[int] = field(default_factory=lambda: [0])
    reward: float = 0.0

    @property
    def environment(self) -> Environment:
        return self.held.environment

    def begin_sequence(self, prompt_ids: tuple[int, ...]) -> None:
        self.context_ids, self.last_id, self.num_tokens = prompt_ids, None, len(prompt_ids)
        self.context = self.conversation


class _Session:
    """All attempts of one `collect`; every slot is filled by the first of them that a tool does not fail."""

    def __init__(
        self,
        slots: Sequence[tuple[int, Task]],
        *,
        engine: RolloutEngine,
        renderer: ChatRenderer,
        environment_factory: EnvironmentFactory,
        limits: RolloutLimits,
        runner: ToolRunner,
        history: History,
        privilege: Privilege | None,
        progress: Progress | None,
        asker: Asker,
    ) -> None:
        self.last_unavailable = ""
        self._slots = slots
        self._finished: dict[int, Trajectory] = {}
        self._rows: list[_Row] = []
        self._engine = engine
        self._renderer = renderer
        self._environment_factory = environment_factory
        self._limits = limits
        self._runner = runner
        self._history = history
        self._privilege = privilege
        self._progress = progress
        self._ask = asker.ask

    @property
    def num_pending(self) -> int:
        return len(self._slots) - len(self._finished)

    @property
    def is_complete(self) -> bool:
        return self.num_pending == 0

    def trajectories(self) -> list[Trajectory]:
        return [self._finished[slot] for slot in range(len(self._slots))]

    def run(self, params: SamplingParams, seed: int) -> None:
        """Attempt every slot that is not filled."""
        rows = []
        with ExitStack() as stack:
            for slot, (_, task) in enumerate(self._slots):
                if slot not in self._finished:
                    held = HeldEnvironment(self._environment_factory(task), task.task_id)
                    stack.callback(held.close)
                    rows.append(_Row(slot=slot, task=task, held=held))
            rows = self._opened(rows)
            for wave in count():
                if not rows:
                    return
                self._rows = rows
                # Sequences that begin later are rows of their own, with draws of their own.
                wave_seed = mix_seed(seed, wave) if wave else seed
                self._engine.rollout([row.context_ids for row in rows], self._respond, params, seed=wave_seed)
                self._check_that_all_ended()
                rows = [row for row in rows if row.is_waiting]
                for row in rows:
                    row.is_waiting = False

    def _check_that_all_ended(self) -> None:
        unfinished = [row.task.task_id for row in self._rows if not (row.held.is_closed or row.is_waiting)]
        if unfinished:
            raise RolloutError(
                f"collect: {type(self._engine).__name__}.rollout came back before {len(unfinished)} "
                f"trajectories were over, the first of task {unfinished[0]!r}; an engine must sample until "
                "respond gives None for every row."
            )

    def _opened(self, rows: Sequence[_Row]) -> list[_Row]:
        """Begin all environments; those that are there come back."""
        openings = self._ask([row.held for row in rows], [row.environment.reset for row in rows])
        opened = []
        for row, opening in zip(rows, openings, strict=True):
            if isinstance(opening, ToolUnavailableError):
                self._drop(row, str(opening))
            else:
                self._open(row, opening)
                opened.append(row)
        return opened

    def _drop(self, row: _Row, reason: str) -> None:
        """Leave an attempt to another try."""
        self.last_unavailable = reason
        row.held.close()

    def _open(self, row: _Row, opening: tuple[Message, ...]) -> None:
        row.opening = row.conversation = opening
        row.told = self._told(row, row.opening)
        self._begin(row, self._renderer.prompt_ids(row.opening, row.environment.tools))
        if row.num_tokens >= self._limits.max_trajectory_tokens:
            raise RolloutError(
                f"collect: the prompt of task {row.task.task_id!r} has {row.num_tokens} tokens, but "
                f"max_trajectory_tokens is {self._limits.max_trajectory_tokens}; raise it or leave the task "
                "out."
            )

    def _told(self, row: _Row, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        return prompt if self._privilege is None else self._privilege.told(row.task, prompt)

    def _begin(self, row: _Row, prompt_ids: tuple[int, ...]) -> None:
        """Begin a sequence, whose prompt the teacher may read with more in it."""
        row.begin_sequence(prompt_ids)
        if self._privilege is not None:
            row.teacher_context_ids = self._renderer.prompt_ids(row.told, row.environment.tools)
            self._privilege.check_length(row.task, row.teacher_context_ids, prompt_ids)

    def _respond(self, ended: Sequence[tuple[int, Generation]]) -> list[tuple[int, ...] | None]:
        rows = [self._rows[index] for index, _ in ended]
        turns = [self._renderer.parse(generation.sampled_ids) for _, generation in ended]
        results = self._runner.run_batch(
            [turn.calls for turn in turns], tools=[row.environment.tools for row in rows]
        )
        for row, row_results in zip(rows, results, strict=True):
            for result in row_results:
                if result.outcome is ToolOutcome.UNAVAILABLE:
                    self._drop(row, f"{result.name}: {result.text}")
        asked = [index for index, row in enumerate(rows) if not row.held.is_closed]
        steps = self._ask(
            [rows[index].held for index in asked],
            [partial(rows[index].environment.step, turns[index], results[index]) for index in asked],
        )
        answers: list[tuple[int, ...] | None] = [None] * len(rows)
        for index, step in zip(asked, steps, strict=True):
            if isinstance(step, ToolUnavailableError):
                self._drop(rows[index], str(step))
            else:
                answers[index] = self._answer(rows[index], ended[index][1], turns[index], step)
        return answers

    def _answer(
        self, row: _Row, generation: Generation, turn: ParsedTurn, step: StepResult
    ) -> tuple[int, ...] | None:
        made = self._turn(row, generation, turn, step)
        row.reward += step.reward
        if step.is_done or len(row.turns) + 1 == self._limits.max_turns:
            row.turns.append(made)
            self._finish(row, step, step.end_reason if step.is_done else EndReason.MAX_TURNS)
            return None
        prompt_ids = self._new_sequence(row, turn, step)
        if prompt_ids is None:
            ids = self._renderer.observation_ids(generation.sampled_ids, step.messages)
            num_tokens = row.num_tokens + len(generation.sampled_ids) + len(ids)
        else:
            num_tokens = len(prompt_ids)
        if num_tokens >= self._limits.max_trajectory_tokens:
            row.turns.append(made)
            self._finish(row, step, EndReason.MAX_TOKENS)
            return None
        if prompt_ids is not None:
            row.turns.append(replace(made, drift=Drift.FORK))
            row.segments.append(len(row.turns))
            self._begin(row, prompt_ids)
            row.is_waiting = True
            return None
        row.turns.append(made)
        row.context_ids, row.last_id, row.num_tokens = ids, generation.sampled_ids[-1], num_tokens
        row.teacher_context_ids = None
        row.context = tuple(step.messages)
        return ids

    def _new_sequence(self, row: _Row, turn: ParsedTurn, step: StepResult) -> tuple[int, ...] | None:
        """The prompt of the next turn where that begins a sequence of its own."""
        tools, window = row.environment.tools, self._history.window
        row.past.append(PastTurn(said=turn.spoken, answer=text_of(step.messages)))
        prompt = step.prompt
        if not prompt and window is not None:
            prompt = summary_prompt(row.opening, row.past, window=window)
        if prompt:
            row.conversation, row.told = prompt, self._told(row, prompt)
            return self._renderer.prompt_ids(prompt, tools)
        if self._renderer.rewrites == "refuse":
            return None
        before, message = row.conversation, self._renderer.assistant_message(turn)
        row.conversation = (*before, message, *step.messages)
        row.told = (*row.told, message, *step.messages)
        return self._renderer.forked_ids(before, message, step.messages, tools)

    def _finish(self, row: _Row, step: StepResult, end_reason: EndReason) -> None:
        group_id, task = self._slots[row.slot]
        self._finished[row.slot] = Trajectory(
            task_id=task.task_id,
            turns=tuple(row.turns),
            group_id=group_id,
            reward=row.reward,
            is_success=step.is_success,
            end_reason=end_reason,
            segments=tuple(row.segments),
            tools=self._own_tools(row),
        )
        row.held.close()
        if self._progress is not None:
            self._progress(len(self._finished), len(self._slots))

    def _own_tools(self, row: _Row) -> tuple[Mapping[str, Any], ...] | None:
        offered = tuple(tool.schema for tool in row.environment.tools)
        return None if offered == tuple(tool.schema for tool in self._renderer.tools) else offered

    def _turn(self, row: _Row, generation: Generation, turn: ParsedTurn, step: StepResult) -> Turn:
        return Turn(
            context_ids=row.context_ids,
            teacher_context_ids=row.teacher_context_ids,
            sampled_ids=generation.sampled_ids,
            sampled_log_probs=generation.log_probs,
            calls=tuple(call for call in turn.calls if isinstance(call, ToolCall)),
            results=step.results,
            reward=step.reward,
            stop_reason=generation.stop_reason,
            policy_version=self._engine.policy_version,
            drift=self._renderer.drift(row.context_ids, generation.sampled_ids, last_id=row.last_id),
            is_truncated=generation.is_truncated,
            messages=row.context,
        )


def _check_arguments(
    params: SamplingParams, renderer: ChatRenderer, num_samples: int, max_attempts: int
) -> None:
    if set(params.stop_ids) != set(renderer.stop_ids):
        raise ValueError(
            f"collect: params.stop_ids are {sorted(params.stop_ids)}, but the renderer closes turns that end "
            f"with {sorted(renderer.stop_ids)}; pass stop_ids=renderer.stop_ids."
        )
    for name, value in (("num_samples", num_samples), ("max_attempts", max_attempts)):
        if value < 1:
            raise ValueError(f"collect: {name} must be 1 or more, got {value}.")
