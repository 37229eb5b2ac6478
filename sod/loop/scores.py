"""Who is to blame for a gradient that is not finite: a teacher whose scores are not."""

from __future__ import annotations

import torch
from torch import Tensor

from sod.errors import TrainingError
from sod.packing import Batch
from sod.scoring import HiddenRows, TeacherScores, TopScores
from sod.teacher.cache import Targets


def check_scores(batch: Batch, target: Targets) -> None:
    """Prove that what the student is compared with can be compared with.

    Args:
        batch: The microbatch, N rows.
        target: Scores of the teacher and of the reference for its rows.

    Raises:
        TrainingError: Naming trajectory, turn and token of the first row that holds a NaN, +inf, or nothing
            but -inf.
    """
    for owner, rows, scores in (
        ("teacher", batch.of_teacher, target.teacher),
        ("reference policy", batch, target.reference),
    ):
        if scores is not None:
            _check_rows(rows, _numbers(scores), owner)


def _numbers(scores: TeacherScores) -> Tensor:
    if isinstance(scores, HiddenRows):
        return scores.hidden
    return scores.log_probs if isinstance(scores, TopScores) else scores


def _check_rows(batch: Batch, scores: Tensor, owner: str) -> None:
    # The largest of a row is NaN where any is, +inf where any is, and -inf where all are.
    bad = (~torch.isfinite(scores.amax(dim=-1))).nonzero()
    if bad.numel() == 0:
        return
    row = int(bad[0])
    step = int(batch.row_steps[row])
    first = int((batch.row_steps == step).nonzero()[0])
    index, turn = batch.trajectories[int(batch.step_trajectory[step])], int(batch.step_turn[step])
    raise TrainingError(
        f"check_scores: the {owner} scores trajectory {index} of the round, turn {turn}, token {row - first} "
        f"of the turn with scores that are not numbers ({bad.numel()} such rows in this microbatch). No "
        "update was made from it. Look at its weights and at their type (float16 overflows), then use "
        "--resume."
    )
