"""Which token is in which step, and which step in which trajectory, from what the caller gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels._checks import arguments, values
from sod_kernels.segments import steps_from_mask


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """Steps of one call.

    Attributes:
        step_ids: Of the logits' leading shape, int64 contiguous, -1 in no step.
        num_steps: Number of steps S.
        trajectory: (S,) integer trajectory of each step; anything for a step without tokens.
    """

    step_ids: Tensor
    num_steps: int
    trajectory: Tensor


def resolve_layout(
    function: str,
    logits: Tensor,
    *,
    step_ids: Tensor | None,
    response_mask: Tensor | None,
    step_trajectory: Tensor | None,
    num_steps: int | None,
    weighting: object,
) -> StepLayout:
    """Work out the steps of a call.

    The number of steps comes from `num_steps`, the length of `step_trajectory` or of a weight tensor, or the
    number of rows where those are the steps; else from the largest id, which waits for the device.

    Args:
        function: Name for messages.
        logits: (N, V) or (B, T, V), for the leading shape and device.
        step_ids: Leading shape, integer, or None.
        response_mask: Leading shape, 0 and 1, or None.
        step_trajectory: (S,) integer or None.
        num_steps: Number of steps or None.
        weighting: As given to `step_kl`; read if it is a tensor.

    Returns:
        The layout.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For wrong shapes, devices, ids, or lengths that disagree.
    """
    arguments.check_step_arguments(function, logits, step_ids, response_mask, step_trajectory)
    given = step_ids if step_ids is not None else response_mask
    counts = {
        "num_steps": num_steps,
        "step_trajectory": None if step_trajectory is None else step_trajectory.shape[0],
        "weighting": weighting.numel() if isinstance(weighting, Tensor) else None,
        "one step per row": _num_rows(logits) if given is None else None,
    }
    total = arguments.check_agreement(function, counts)
    ids = _ids(logits, step_ids, response_mask)
    if total is None:
        arguments.check_may_wait(function, ids.device)
        total = int(ids.max().item()) + 1 if ids.numel() else 0
    values.check_ids(function, "step_ids", ids, low=-1, high=total)
    if step_trajectory is None:
        step_trajectory = _row_of_steps(function, ids, total)
    return StepLayout(step_ids=ids, num_steps=total, trajectory=step_trajectory.detach())


def _num_rows(logits: Tensor) -> int:
    return logits.shape[0] if logits.dim() == 3 else 1


def _ids(logits: Tensor, step_ids: Tensor | None, response_mask: Tensor | None) -> Tensor:
    if step_ids is not None:
        return step_ids.detach().to(torch.int64).contiguous()
    if response_mask is not None:
        return steps_from_mask(response_mask.detach()).contiguous()
    if logits.dim() == 2:
        return torch.zeros(logits.shape[:1], dtype=torch.int64, device=logits.device)
    rows = torch.arange(logits.shape[0], device=logits.device)
    return rows[:, None].expand(logits.shape[:2]).contiguous()


def _row_of_steps(function: str, ids: Tensor, num_steps: int) -> Tensor:
    """(S,) row that each step lies in; all 0 for packed tokens, which are one trajectory."""
    if ids.dim() == 1:
        return torch.zeros(num_steps, dtype=torch.int64, device=ids.device)
    rows = torch.arange(ids.shape[0], device=ids.device)[:, None].expand(ids.shape).flatten()
    # Tokens in no step are collected past the last step.
    bins = torch.where(ids < 0, num_steps, ids).flatten()
    table = torch.zeros(num_steps + 1, dtype=torch.int64, device=ids.device)
    last = table.scatter_reduce(0, bins, rows, "amax")[:-1]
    arguments.check_rows_of_steps(function, ids, last)
    return last


def with_unit_stride(logits: Tensor) -> Tensor:
    """Copy logits whose vocabulary is not contiguous, which the sweeps need; leave all others alone.

    Args:
        logits: (..., V).

    Returns:
        (..., V) with last stride 1.
    """
    return logits if logits.stride(-1) == 1 else logits.contiguous()
