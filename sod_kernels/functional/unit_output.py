"""From what the units gave to what the caller gets: masks, statistics per step, the loss."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels import _reduction
from sod_kernels._layout import StepLayout
from sod_kernels._unit_scores import Side, path_log_probs
from sod_kernels.functional.options import Options
from sod_kernels.functional.unit_batch import UnitBatch
from sod_kernels.segments import segment_sums
from sod_kernels.types import RowState, StepStatistics
from sod_kernels.unit_types import UnitKLOutput, UnitOpOutputs


class UnitValues(NamedTuple):
    """What the units gave, (U,) each.

    Attributes:
        unit_kl: Divergence, 0 where a unit is not compared.
        entropy: Entropy of the student over the unit's columns.
        distance: What a step's divergence averages.
        steps: int64, -1 where a unit is not compared.
        teacher_mass: As in `UnitKLOutput`, like the next two.
        student_log_probs: See above.
        teacher_log_probs: See above.
    """

    unit_kl: Tensor
    entropy: Tensor
    distance: Tensor
    steps: Tensor
    teacher_mass: Tensor | None = None
    student_log_probs: Tensor | None = None
    teacher_log_probs: Tensor | None = None


def read_units(outputs: UnitOpOutputs, batch: UnitBatch, min_teacher_mass: float | None) -> UnitValues:
    """Read what the forward op gave, and leave out units of too little teacher mass.

    Args:
        outputs: Of the op.
        batch: What went into it.
        min_teacher_mass: As given to `unit_kl`.

    Returns:
        The values.
    """
    unit_kl, steps, kinds = outputs.unit_kl, batch.space.steps, batch.space.kinds
    mass = log_p = log_q = None
    if batch.measures_teacher and kinds.shape[0]:
        log_q = path_log_probs(
            batch.teacher, kinds, outputs.teacher_lse, outputs.teacher_label_logits, batch.temperature
        )
    if min_teacher_mass is not None and log_q is not None:
        mass = torch.where(steps >= 0, _teacher_mass(outputs, log_q, batch), 0.0)
        steps = torch.where(mass >= min_teacher_mass, steps, -1)
        unit_kl = torch.where(steps >= 0, unit_kl, 0.0)
    distance = unit_kl
    if batch.measures_student and log_q is not None:
        log_p = path_log_probs(
            batch.student, kinds, outputs.student_lse, outputs.student_label_logits, batch.temperature
        )
        distance = (log_p - log_q).abs()
    return UnitValues(
        unit_kl, outputs.unit_entropy, distance, steps, mass, log_p, None if log_p is None else log_q
    )


def finish_units(options: Options, values: UnitValues, batch: UnitBatch, backend: str) -> UnitKLOutput:
    """Average per step, weigh, reduce and name.

    Args:
        options: As the caller chose.
        values: Of the units.
        batch: Its steps, and the student's tokens of each unit.
        backend: That ran.

    Returns:
        The output.
    """
    statistics, num_units = _statistics(values, batch.layout)
    # A step without a unit to compare says nothing, so it is no anchor and no end of a range.
    compared = replace(statistics, tokens=torch.where(num_units > 0, statistics.tokens, 0))
    weights = _reduction.step_weights(options.function, options.weighting, compared)
    loss = _reduction.reduce_loss(
        [(values.unit_kl, weights)],
        values.steps,
        statistics,
        token_weights=unit_weights(options.token_weights, batch.student),
        reduction=options.reduction,
        denominator=options.denominator,
    )

    def reported(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(values.unit_kl.dtype)

    return UnitKLOutput(
        loss=loss,
        unit_kl=values.unit_kl,
        unit_entropy=values.entropy,
        unit_steps=values.steps,
        step_divergence=statistics.divergence,
        step_weights=weights,
        step_tokens=statistics.tokens,
        step_units=num_units,
        unit_teacher_mass=reported(values.teacher_mass),
        unit_student_log_probs=reported(values.student_log_probs),
        unit_teacher_log_probs=reported(values.teacher_log_probs),
        backend=backend,
    )


def count_tokens(layout: StepLayout) -> Tensor:
    """Count the student's tokens of each step, in units or not.

    Args:
        layout: Steps of the tokens.

    Returns:
        (S,) int64.
    """
    ones = torch.ones(layout.step_ids.shape, dtype=torch.float64, device=layout.step_ids.device)
    return segment_sums(ones, layout.step_ids, layout.num_steps).to(torch.int64)


def unit_weights(token_weights: Tensor | None, student: Side) -> Tensor | None:
    """Average the weights of each unit's student tokens.

    Args:
        token_weights: (N,) floating, or None.
        student: The student's side.

    Returns:
        (U,) float64, or None.
    """
    if token_weights is None or student.spans.shape[0] == 0:
        return None
    sums = segment_sums(token_weights.detach(), student.units, student.spans.shape[0])
    return sums / student.lengths


def _statistics(values: UnitValues, layout: StepLayout) -> tuple[StepStatistics, Tensor]:
    """Means over the compared units of each step beside all its tokens, and (S,) numbers of those units."""
    num_units = segment_sums(torch.ones_like(values.entropy), values.steps, layout.num_steps)

    def mean(of_units: Tensor) -> Tensor:
        sums = segment_sums(of_units.detach(), values.steps, layout.num_steps)
        per_unit = torch.where(num_units > 0, sums / num_units.clamp(min=1.0), 0.0)
        return per_unit.to(values.unit_kl.dtype)

    entropy = mean(values.entropy)
    statistics = StepStatistics(
        divergence=mean(values.distance),
        uncertainty=entropy,
        entropy=entropy,
        tokens=count_tokens(layout),
        trajectory=layout.trajectory,
    )
    return statistics, num_units.to(torch.int64)


def _teacher_mass(outputs: UnitOpOutputs, path: Tensor, batch: UnitBatch) -> Tensor:
    """(U,) share of the teacher's probability that a unit's columns hold, float64 in [0, 1].

    That is the mass of the shared columns at the first row, and exp of the mean log-probability of the span,
    whatever the score is.
    """
    teacher, scores, lse = batch.teacher, outputs.span_scores[:, 1], outputs.teacher_lse
    first = lse[teacher.spans[:, 0].clamp(max=max(lse.shape[0] - 1, 0))]
    columns = outputs.unit_state[:, RowState.TEACHER_LSE]
    shared = (columns - first).exp() - (scores / batch.temperature - first).exp()
    of_span = torch.where(scores == -torch.inf, 0.0, (path / teacher.lengths).exp())
    return (shared.clamp(min=0.0) + of_span).clamp(max=1.0)
