"""Expert traces of the ledger world as trajectories: written by the expert, answered by the real tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from sod.assembly import make_renderer
from sod.engines.base import SamplingParams
from sod.engines.scripted import ScriptedEngine
from sod.envs.ledger import ledger_task
from sod.envs.ledger_env import LedgerSection
from sod.envs.ledger_expert import ExpertTurn, expert_turns
from sod.envs.ledger_faults import with_retries
from sod.envs.registry import build_environment
from sod.errors import RolloutError
from sod.rollout.collector import collect
from sod.rollout.limits import RolloutLimits
from sod.tools import ToolRunner
from sod.types import Trajectory

_MAX_TOKENS = 512
_NUM_TOOL_THREADS = 2


def expert_traces(
    num_traces: int,
    *,
    seed: int,
    error_rate: float,
    tokenizer: PreTrainedTokenizerBase,
    section: LedgerSection | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trajectory]:
    """Plays the expert on training questions.

    Args:
        num_traces: How many questions.
        seed: Of the questions and of where mistakes fall.
        error_rate: Chance of a mistake before each right call.
        tokenizer: With the chat template.
        section: Kind of question, and faults, after which the expert repeats its call; None for the demo's.
        progress: Called with traces done and in all.

    Returns:
        Trajectories, all solved; turns with a mistake have `is_trained` False.

    Raises:
        RolloutError: If an attempt of the expert was not solved, which means that a tool is broken.
    """
    section = section or LedgerSection()
    questions = [section.question(seed, index) for index in range(num_traces)]
    tasks = [
        ledger_task(question, task_id=f"expert-{seed}-{index}") for index, question in enumerate(questions)
    ]
    written = [
        with_retries(expert_turns(question, seed=seed, error_rate=error_rate), section.faults, task.task_id)
        for question, task in zip(questions, tasks, strict=True)
    ]
    scripts = [[tokenizer.encode(turn.text, add_special_tokens=False) for turn in turns] for turns in written]
    longest = max(len(turns) for turns in written)
    environment = build_environment(section)
    try:
        renderer = make_renderer(tokenizer, environment, None)
        with ToolRunner(environment.tools, num_threads=_NUM_TOOL_THREADS) as runner:
            trajectories = collect(
                tasks,
                engine=ScriptedEngine(scripts),
                renderer=renderer,
                environment_factory=environment.factory,
                limits=RolloutLimits(
                    max_turns=longest,
                    max_turn_tokens=_MAX_TOKENS,
                    max_trajectory_tokens=longest * _MAX_TOKENS,
                ),
                params=SamplingParams(max_turn_tokens=_MAX_TOKENS, stop_ids=renderer.stop_ids),
                seed=seed,
                runner=runner,
                progress=progress,
            )
    finally:
        environment.close()
    return [_marked(trajectory, turns) for trajectory, turns in zip(trajectories, written, strict=True)]


def _marked(trajectory: Trajectory, written: Sequence[ExpertTurn]) -> Trajectory:
    if not trajectory.is_success or len(trajectory.turns) != len(written):
        texts = "; ".join(result.text for turn in trajectory.turns for result in turn.results)
        raise RolloutError(
            f"expert_traces: the expert did not solve {trajectory.task_id}; the tools answered: {texts}."
            " Check that the Python sandbox works on this machine."
        )
    turns = tuple(
        replace(turn, is_trained=text.is_trained)
        for turn, text in zip(trajectory.turns, written, strict=True)
    )
    return replace(trajectory, turns=turns)
