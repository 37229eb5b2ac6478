"""From a divergence per unit to statistics per step and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _reduction
from sod_kernels._layout import StepLayout
from sod_kernels._unit_scores import Side
from sod_kernels.segments import segment_sums
from sod_kernels.types import StepStatistics


class UnitValues(NamedTuple):
    """What the units gave, (U,) each.

    Attributes:
        unit_kl: Divergence, 0 where a unit is not compared.
        entropy: Entropy of the student over the unit's columns.
        distance: What a step's divergence averages.
        steps: int64, -1 where a unit is not compared.
    """

    unit_kl: Tensor
    entropy: Tensor
    distance: Tensor
    steps: Tensor


class StepResult(NamedTuple):
    """Loss and what it was made of.

    Attributes:
        loss: Scalar, or (U,) with reduction "none".
        divergence: (S,) mean over the compared units of each step.
        weights: (S,).
        tokens: (S,) int64 student tokens.
        units: (S,) int64 compared units.
    """

    loss: Tensor
    divergence: Tensor
    weights: Tensor
    tokens: Tensor
    units: Tensor


def reduce_units(
    function: str,
    values: UnitValues,
    layout: StepLayout,
    student: Side,
    *,
    weighting: Tensor | Callable[[StepStatistics], Tensor] | None,
    token_weights: Tensor | None,
    reduction: str,
    denominator: float | Tensor | None,
) -> StepResult:
    """Average per step, weigh and reduce.

    Args:
        function: Name for messages.
        values: Of the units.
        layout: Steps of the student's tokens.
        student: The student's side, for the tokens of the units.
        weighting: As given to `unit_kl`.
        token_weights: (N,) floating, or None.
        reduction: One of the five names.
        denominator: Takes the place of the outer divisor, or None.

    Returns:
        Loss and step statistics.
    """
    num_steps, dtype = layout.num_steps, values.unit_kl.dtype
    ones = torch.ones(layout.step_ids.shape, dtype=dtype, device=layout.step_ids.device)
    tokens = segment_sums(ones, layout.step_ids, num_steps).to(torch.int64)
    num_units = segment_sums(torch.ones_like(values.entropy), values.steps, num_steps)

    def mean(of_units: Tensor) -> Tensor:
        sums = segment_sums(of_units.detach(), values.steps, num_steps)
        return torch.where(num_units > 0, sums / num_units.clamp(min=1.0), 0.0).to(dtype)

    compared = StepStatistics(
        divergence=mean(values.distance),
        uncertainty=mean(values.entropy),
        # A step without a unit to compare says nothing, so it is no anchor and no end of a range.
        tokens=torch.where(num_units > 0, tokens, 0),
        trajectory=layout.trajectory,
    )
    weights = _reduction.step_weights(function, weighting, compared)
    loss = _reduction.reduce_loss(
        [(values.unit_kl, weights)],
        values.steps,
        StepStatistics(
            divergence=compared.divergence,
            uncertainty=compared.uncertainty,
            tokens=tokens,
            trajectory=layout.trajectory,
        ),
        token_weights=None if token_weights is None else _unit_weights(token_weights, student),
        reduction=reduction,
        denominator=denominator,
    )
    return StepResult(loss, compared.divergence, weights, tokens, num_units.to(torch.int64))


def _unit_weights(token_weights: Tensor, student: Side) -> Tensor:
    """(U,) mean weight of each unit's student tokens."""
    sums = segment_sums(token_weights.detach(), student.units, student.spans.shape[0])
    return sums / student.lengths


def teacher_mass(
    teacher_lse: Tensor,
    scores: Tensor,
    path_log_probs: Tensor,
    teacher: Side,
    whole_lse: Tensor,
    temperature: float,
) -> Tensor:
    """Share of the teacher's probability that a unit's columns hold.

    Args:
        teacher_lse: (U,) log-sum-exp over the unit's columns, the span's included.
        scores: (U,) the teacher's span scores in raw logits, -inf without a span column.
        path_log_probs: (U,) sums of the teacher's log-probabilities.
        teacher: The teacher's side.
        whole_lse: (M,) log-sum-exp of the teacher's rows.
        temperature: Divides the logits.

    Returns:
        (U,) float64 in [0, 1]: mass of the shared columns at the first row, and exp of the mean
        log-probability of the span, whatever the score is.
    """
    first = whole_lse[teacher.spans[:, 0].clamp(max=max(whole_lse.shape[0] - 1, 0))]
    shared = (teacher_lse - first).exp() - (scores / temperature - first).exp()
    of_span = torch.where(scores == -torch.inf, 0.0, (path_log_probs / teacher.lengths).exp())
    return (shared.clamp(min=0.0) + of_span).clamp(max=1.0)
