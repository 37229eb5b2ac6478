"""Proof that the trainer scores the very tokens that were sampled.

A shifted mask, a token that was tokenised again or stale weights all show as a gap between the log-prob at
sampling time and the trainer's, before the first update of a round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sod.errors import RolloutError
from sod.packing import Batch
from sod.types import Trajectory
from sod_kernels import token_log_probs


def check_alignment(
    batch: Batch,
    logits: Tensor,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float,
    bound: float,
) -> float:
    """Compare log-probs at sampling time with those of the trainer.

    Args:
        batch: A microbatch of on-policy trajectories, N rows.
        logits: (N, V) of the student that sampled them.
        trajectories: The round's trajectories.
        temperature: Sampling temperature.
        bound: Largest gap allowed, nats.

    Returns:
        The largest gap, nats.

    Raises:
        RolloutError: Naming trajectory, turn and token of the largest gap, if it is beyond the bound.
    """
    if batch.num_rows == 0:
        return 0.0
    recomputed = token_log_probs(logits.detach(), batch.labels, temperature=temperature).log_probs
    gaps = (recomputed - batch.row_log_probs).abs()
    gaps = torch.where(gaps.isnan(), torch.inf, gaps)
    worst = int(gaps.argmax())
    gap = float(gaps[worst])
    if gap <= bound:
        return gap
    step = int(batch.row_steps[worst])
    first = int((batch.row_steps == step).nonzero()[0])
    index = batch.trajectories[int(batch.step_trajectory[step])]
    turn = int(batch.step_turn[step])
    raise RolloutError(
        f"check_alignment: trajectory {index} (task {trajectories[index].task_id!r}), turn {turn}, token "
        f"{worst - first} of the turn (id {int(batch.labels[worst])}): the engine sampled it at log-prob "
        f"{float(batch.row_log_probs[worst]):.4f}, the trainer scores it {float(recomputed[worst]):.4f}; "
        f"the gap {gap:.4f} is beyond [trainer] alignment_bound = {bound:g}. Token ids, masks or weights of "
        "engine and trainer disagree; raise the bound only if rounding (bfloat16) explains the gap."
    )
