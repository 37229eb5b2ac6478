"""The single owner of masks and step ids: trajectories in, token sequences out.

The ids are those that the engine read and sampled; nothing is tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sod.types import Trajectory

_PER_TOKEN = ("input_ids", "response_mask", "loss_mask", "step_ids", "log_probs")


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

    Raises:
        ValueError: The tensors have different lengths, the masks do not fit the steps, steps do not come one
            after another, a log-probability stands where nothing was sampled, or the first token is the
            student's.
    """

    input_ids: Tensor
    response_mask: Tensor
    loss_mask: Tensor
    step_ids: Tensor
    log_probs: Tensor
    errors_before: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {name: tuple(getattr(self, name).shape) for name in _PER_TOKEN}
        if len(set(lengths.values())) != 1 or self.input_ids.dim() != 1:
            raise ValueError(f"TokenSequence: wanted tensors of one shape (T,), got {lengths}.")
        steps, mask = self.step_ids, self.response_mask
        if not torch.equal(mask, steps >= 0):
            raise ValueError("TokenSequence: response_mask must be step_ids >= 0, and differs from it.")
        if bool((self.loss_mask & ~mask).any()):
            raise ValueError("TokenSequence: loss_mask has tokens that response_mask has not.")
        if bool(mask[:1].any()):
            raise ValueError(
                "TokenSequence: the first token is the student's, so nothing predicts it; put a prompt first."
            )
        if bool((steps[mask].diff() < 0).any()):
            raise ValueError("TokenSequence: step_ids fall; steps stand in the order of the turns.")
        if bool(((self.log_probs != 0) & ~mask).any()) or not bool(self.log_probs.isfinite().all()):
            raise ValueError(
                "TokenSequence: log_probs must be finite, and 0 wherever response_mask is False."
            )


def tokenize_trajectory(trajectory: Trajectory) -> tuple[TokenSequence, ...]:
    """Lay the turns of a trajectory out as token sequences, one per segment.

    Args:
        trajectory: A finished trajectory.

    Returns:
        One sequence per entry of `trajectory.segments`, in order.
    """
    bounds = [*trajectory.segments, len(trajectory.turns)]
    errors = (sum(result.is_error for result in turn.results) for turn in trajectory.turns)
    before = tuple(accumulate(errors, initial=0))[:-1]
    return tuple(_lay_out(trajectory, start, end, before) for start, end in pairwise(bounds))


def tokenize_for_teacher(trajectories: Sequence[Trajectory]) -> list[tuple[TokenSequence, ...]] | None:
    """Lay trajectories out as the teacher reads them: other prompts, the student's tokens kept.

    Args:
        trajectories: Finished trajectories.

    Returns:
        The token sequences of each, with the responses of `tokenize_trajectory` at other places; None where
        the teacher reads what the student read.
    """
    if all(turn.teacher_context_ids is None for one in trajectories for turn in one.turns):
        return None
    return [tokenize_trajectory(_as_told(one)) for one in trajectories]


def _as_told(trajectory: Trajectory) -> Trajectory:
    turns = (
        turn if turn.teacher_context_ids is None else replace(turn, context_ids=turn.teacher_context_ids)
        for turn in trajectory.turns
    )
    return replace(trajectory, turns=tuple(turns))


def _lay_out(trajectory: Trajectory, start: int, end: int, before: tuple[int, ...]) -> TokenSequence:
    input_ids: list[int] = []
    step_ids: list[int] = []
    log_probs: list[float] = []
    is_trained: list[bool] = []
    for index in range(start, end):
        turn = trajectory.turns[index]
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
