"""Per-step divergences and SOD weights of trajectories that already exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from sod.algorithms import Algorithm, LossContext
from sod.loop.records import step_rows
from sod.loop.update import step_stats
from sod.packing import num_trained_tokens, pack
from sod.scoring import row_states
from sod.teacher.base import AnyTeacher, teacher_scores
from sod.tokenization import tokenize_for_teacher, tokenize_trajectory
from sod.types import Trajectory


@torch.no_grad()
def score_trajectories(
    trajectories: Sequence[Trajectory],
    student: PreTrainedModel,
    teacher: AnyTeacher,
    algorithm: Algorithm,
    *,
    pad_id: int,
    max_microbatch_tokens: int,
) -> list[dict[str, Any]]:
    """Score every step of some trajectories.

    Args:
        trajectories: What the student wrote; kept ids are scored, nothing is tokenised again.
        student: The student; its state does not change.
        teacher: The teacher.
        algorithm: Gives divergences and weights, usually `sod`.
        pad_id: Token id of padding.
        max_microbatch_tokens: Padded tokens scored at a time.

    Returns:
        One row per step in the form of steps.jsonl, without `round` and `update`.
    """
    sequences = [tokenize_trajectory(trajectory) for trajectory in trajectories]
    context = LossContext(denominator=max(1, num_trained_tokens(sequences)), round_number=1)
    student.train(False)
    steps = []
    told, every = tokenize_for_teacher(trajectories), range(len(sequences))
    for batch in pack(sequences, every, max_tokens=max_microbatch_tokens, pad_id=pad_id, told=told):
        moved = batch.to(student.device)
        output = algorithm.loss(moved, row_states(student, moved), teacher_scores(teacher, moved), context)
        steps += step_stats(moved, output)
    rows = step_rows(steps, trajectories, round_index=0, update=0)
    return [{key: value for key, value in row.items() if key not in ("round", "update")} for row in rows]
