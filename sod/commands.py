"""What the commands do, without the command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from sod.algorithms import make_algorithm
from sod.assembly import RunParts, assemble_policy
from sod.config import RunConfig, StudentSection
from sod.config_algorithms import SODSection
from sod.config_teachers import TeacherSection
from sod.errors import DataError
from sod.evaluate import EvalResult
from sod.loop.parts import evaluate_in_parts
from sod.loop.sampling import Progress, make_runner, make_sampler
from sod.models import check_same_tokenizer, check_vocabulary, load_model, load_tokenizer
from sod.rollout.store import read_trajectories
from sod.score import score_trajectories
from sod.scoring import check_head
from sod.teacher.local import LocalTeacher
from sod.types import Trajectory


def with_checkpoint(config: RunConfig, checkpoint: Path | None) -> RunConfig:
    """Put a checkpoint folder in the place of the [student] of a configuration."""
    if checkpoint is None:
        return config
    model = str(checkpoint.resolve())
    student = StudentSection(model=model) if config.student is None else config.student
    return replace(config, student=replace(student, model=model, revision=None))


def evaluate(
    config: RunConfig, progress: Progress | None = None, *, attempts: Path | None = None
) -> EvalResult:
    """Evaluate the student of a configuration on its held-out tasks.

    Args:
        config: The settings; `[evaluation]` says how to sample.
        progress: Called with trajectories done and in all.
        attempts: Folder where the attempts are kept, a part at a time, and taken from if they are there; None
            keeps none.

    Returns:
        The result.

    Raises:
        SodError: Whatever is missing or does not fit.
    """
    with _Policy(config, "eval") as policy:
        if attempts is None:
            return policy.sampler.evaluate(policy.parts.tasks, 0, progress)
        return evaluate_in_parts(policy.sampler, policy.parts.tasks, attempts, progress)


def rollout(
    config: RunConfig,
    *,
    which: Literal["train", "eval"],
    num_tasks: int | None,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """Roll the student of a configuration out.

    Args:
        config: The settings; `[rollout]` says how to sample.
        which: The task file.
        num_tasks: Tasks to take from the top; None for all.
        progress: Called with trajectories done and in all.

    Returns:
        The trajectories.

    Raises:
        SodError: Whatever is missing or does not fit.
    """
    with _Policy(config, which) as policy:
        return policy.sampler.rollout(policy.parts.tasks[:num_tasks], 0, progress)


def score(
    student: str,
    teacher: str,
    trajectories: Path,
    *,
    section: SODSection,
    max_microbatch_tokens: int = 16384,
) -> list[dict[str, Any]]:
    """Score stored trajectories: per-step divergences and SOD weights.

    Args:
        student: Checkpoint folder or hub name.
        teacher: Checkpoint folder or hub name.
        trajectories: A trajectories file.
        section: SOD's settings.
        max_microbatch_tokens: Padded tokens scored at a time.

    Returns:
        One row per step.

    Raises:
        SodError: Whatever is missing or does not fit.
    """
    stored = read_trajectories(trajectories)
    student_section, teacher_section = StudentSection(model=student), TeacherSection(model=teacher)
    tokenizer = load_tokenizer(student_section)
    check_same_tokenizer(tokenizer, load_tokenizer(teacher_section))
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    _check_ids(stored, vocab_size, trajectories)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {}
    for role, spec in (("student", student_section), ("teacher", teacher_section)):
        models[role] = load_model(spec, device=device)
        check_vocabulary(models[role], tokenizer, role)
        check_head(models[role], role)
    return score_trajectories(
        stored,
        models["student"],
        LocalTeacher(models["teacher"]),
        make_algorithm(section, vocab_size=vocab_size),
        pad_id=tokenizer.pad_token_id or 0,
        max_microbatch_tokens=max_microbatch_tokens,
    )


def step_summary(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int, float, float]]:
    """Average rows of steps by turn: turn, number, mean divergence, mean weight."""
    turns = sorted({row["step"] for row in rows})
    summary = []
    for turn in turns:
        own = [row for row in rows if row["step"] == turn]
        divergence = sum(row["divergence"] for row in own) / len(own)
        summary.append((turn, len(own), divergence, sum(row["weight"] for row in own) / len(own)))
    return summary


def _check_ids(trajectories: Sequence[Trajectory], vocab_size: int, path: Path) -> None:
    for index, trajectory in enumerate(trajectories):
        largest = max((max(turn.context_ids + turn.sampled_ids) for turn in trajectory.turns), default=0)
        if largest >= vocab_size:
            raise DataError(
                f"{path}, trajectory {index}: has token id {largest}, but the student's tokenizer ends at "
                f"{vocab_size - 1}; score with the model that wrote these trajectories"
            )


class _Policy:
    """A student that is ready for rollouts, closed when left."""

    def __init__(self, config: RunConfig, which: Literal["train", "eval"]) -> None:
        torch.set_num_threads(config.trainer.num_threads)
        self.parts: RunParts = assemble_policy(config, which)
        with ExitStack() as stack:
            if self.parts.environment is not None:
                stack.callback(self.parts.environment.close)
            runner = stack.enter_context(make_runner(config, self.parts))
            self.sampler = make_sampler(config, self.parts, runner)
            stack.callback(self.sampler.engine.close)
            self.sampler.take_weights(self.parts.student, 0)
            self._opened = stack.pop_all()

    def __enter__(self) -> _Policy:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
