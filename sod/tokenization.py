"""The single owner of masks and step ids: trajectories in, token sequences out.

The ids are those that the engine read and sampled; nothing is tokenised again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sod.types import Trajectory, Turn


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """One growing token sequence: a segment of a trajectory.

    Attributes:
        input_ids: (T,) int64 token ids.
        response_mask: (T,) bool, what the student wrote.
        loss_mask: (T,) bool, within `response_mask`: the turns that are trained.
        step_ids: (T,) int64, index of the turn within the trajectory at response tokens, else -1.
        log_probs: (T,) float32 sampled log-probabilities in nats, 0 where nothing was sampled.
        errors_before: For each turn of the whole trajectory, the error observations that came before it.
    """

    input_ids: Tensor
    response_mask: Tensor
    loss_mask: Tensor
    step_ids: Tensor
    log_probs: Tensor
    errors_before: tuple[int, ...]


def tokenize_trajectory(trajectory: Trajectory) -> tuple[TokenSequence, ...]:
    """Lay the turns of a trajectory out as token sequences, one per segment.

    Args:
        trajectory: A finished trajectory with at least one turn.

    Returns:
        One sequence per entry of `trajectory.segments`, in order.

    Raises:
        ValueError: The segments do not cut the turns, a turn has no tokens, its log-probabilities do not
            match its tokens, or a segment begins with a token that nothing can predict.
    """
    _check_segments(trajectory)
    bounds = [*trajectory.segments, len(trajectory.turns)]
    errors = (sum(result.is_error for result in turn.results) for turn in trajectory.turns)
    before = tuple(accumulate(errors, initial=0))[:-1]
    return tuple(_lay_out(trajectory, start, end, before) for start, end in pairwise(bounds))


def _lay_out(trajectory: Trajectory, start: int, end: int, before: tuple[int, ...]) -> TokenSequence:
    input_ids: list[int] = []
    step_ids: list[int] = []
    log_probs: list[float] = []
    is_trained: list[bool] = []
    for index in range(start, end):
        turn = trajectory.turns[index]
        _check_turn(trajectory.task_id, index, turn, is_first=index == start)
        num_context, num_sampled = len(turn.context_ids), len(turn.sampled_ids)
        input_ids += turn.context_ids + turn.sampled_ids
        step_ids += [-1] * num_context + [index] * num_sampled
        log_probs += [0.0] * num_context + list(turn.sampled_log_probs or [0.0] * num_sampled)
        is_trained += [False] * num_context + [turn.is_trained] * num_sampled
    steps = torch.tensor(step_ids, dtype=torch.int64)
    return TokenSequence(
        input_ids=torch.tensor(input_ids, dtype=torch.int64),
        response_mask=steps >= 0,
        loss_mask=torch.tensor(is_trained, dtype=torch.bool),
        step_ids=steps,
        log_probs=torch.tensor(log_probs, dtype=torch.float32),
        errors_before=before,
    )


def _check_segments(trajectory: Trajectory) -> None:
    segments, num_turns = tuple(trajectory.segments), len(trajectory.turns)
    if num_turns == 0:
        raise ValueError(f"tokenize_trajectory: trajectory of task {trajectory.task_id!r} has no turns.")
    is_rising = all(left < right for left, right in pairwise(segments))
    if not segments or segments[0] != 0 or not is_rising or segments[-1] >= num_turns:
        raise ValueError(
            f"tokenize_trajectory: segments of task {trajectory.task_id!r} must be rising turn indices that "
            f"begin with 0 and stay below {num_turns}, got {segments}."
        )


def _check_turn(task_id: str, index: int, turn: Turn, *, is_first: bool) -> None:
    where = f"tokenize_trajectory: turn {index} of task {task_id!r}"
    if not turn.sampled_ids:
        raise ValueError(f"{where} has no sampled_ids; every turn needs at least its stop token.")
    if turn.sampled_log_probs and len(turn.sampled_log_probs) != len(turn.sampled_ids):
        raise ValueError(
            f"{where} has {len(turn.sampled_log_probs)} sampled_log_probs for {len(turn.sampled_ids)} "
            "sampled_ids; give one per token, or none where the turn was not sampled."
        )
    if not all(math.isfinite(value) for value in turn.sampled_log_probs):
        raise ValueError(f"{where} has a sampled log-probability that is not finite.")
    if is_first and not turn.context_ids:
        raise ValueError(
            f"{where} begins a segment without context_ids, so nothing predicts its first token; "
            "put the prompt there."
        )
