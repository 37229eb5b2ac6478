"""Scores of spans from whole rows of logits, and how their gradient goes back to those rows.

A unit of k tokens on one side is scored with the mean of its tokens' log-probabilities ("log_prob") or of
their raw logits ("logit"). Both are expressed beside the logits of the unit's first row, that is with the
log-sum-exp of that row added to the former, so that they are one more column of it; see docs/math.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels.segments import segment_sums
from sod_kernels.types import Backend, LogProbInputs, RowState
from sod_kernels.unit_types import UnitGradients


class UnitTensors(NamedTuple):
    """What the unit ops take; U units, N student and M teacher rows, checked before.

    Attributes:
        student_logits: (N, width) floating, last stride 1.
        teacher_logits: (M, width), likewise.
        student_ids: (N,) int64 label of each row, valid in compared units.
        teacher_ids: (M,) int64, likewise.
        student_spans: (U, 2) int64, ascending and disjoint.
        teacher_spans: (U, 2) int64, likewise.
        kinds: (U,) int64: -1 not compared, 0 over the columns alone, 1 with a span column.
        student_columns: (1, C) or (U, C) int32, ascending within a list.
        teacher_columns: Same shape, int32.
        excluded: (U, 2) int64 positions in the list that do not take part, -1 for none.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    student_ids: Tensor
    teacher_ids: Tensor
    student_spans: Tensor
    teacher_spans: Tensor
    kinds: Tensor
    student_columns: Tensor
    teacher_columns: Tensor
    excluded: Tensor


class UnitOptions(NamedTuple):
    """Options of the unit ops, in the order of their schema.

    Attributes:
        score: "log_prob" or "logit".
        measures_student: Whether to measure all rows of compared units on the student's side.
        measures_teacher: The same on the teacher's side.
        student_vocab_size: Valid columns of the student.
        teacher_vocab_size: Valid columns of the teacher.
        divergence: As a backend takes it.
        beta: As a backend takes it.
        temperature: Divides all logits.
        backend: Resolved name.
    """

    score: str
    measures_student: bool
    measures_teacher: bool
    student_vocab_size: int
    teacher_vocab_size: int
    divergence: str
    beta: float
    temperature: float
    backend: str


class Side(NamedTuple):
    """One side of a batch of units.

    Attributes:
        logits: (rows, width).
        ids: (rows,) label of each row.
        spans: (U, 2).
        vocab_size: Valid columns.
    """

    logits: Tensor
    ids: Tensor
    spans: Tensor
    vocab_size: int

    @property
    def units(self) -> Tensor:
        """(rows,) number of the unit that each row belongs to, -1 for none."""
        rows = torch.arange(self.ids.shape[0], device=self.ids.device)
        unit = torch.searchsorted(self.spans[:, 0].contiguous(), rows, right=True) - 1
        is_inside = (unit >= 0) & (rows < self.spans[unit.clamp(min=0), 1])
        return torch.where(is_inside, unit, -1)

    @property
    def lengths(self) -> Tensor:
        """(U,) number of tokens."""
        return self.spans[:, 1] - self.spans[:, 0]


def sides(tensors: UnitTensors, options: UnitOptions) -> tuple[Side, Side]:
    """Take a batch apart.

    Args:
        tensors: Of the batch.
        options: For the sizes of the vocabularies.

    Returns:
        The student's side and the teacher's.
    """
    return (
        Side(tensors.student_logits, tensors.student_ids, tensors.student_spans, options.student_vocab_size),
        Side(tensors.teacher_logits, tensors.teacher_ids, tensors.teacher_spans, options.teacher_vocab_size),
    )


def measure_rows(
    side: Side, kinds: Tensor, options: UnitOptions, backend: Backend, *, measures_all: bool
) -> Tensor:
    """Measure the log-sum-exp of the rows whose normaliser counts.

    Those are the rows of spans of several tokens, scored with log-probabilities; all others cancel.

    Args:
        side: One side.
        kinds: (U,) of the units.
        options: For score and temperature.
        backend: Whose sweep over whole rows runs.
        measures_all: Whether to measure all rows of compared units.

    Returns:
        (rows,) float64, 0 where not measured.
    """
    if not measures_all and options.score == "logit":
        return torch.zeros(side.ids.shape, dtype=torch.float64, device=side.ids.device)
    is_needed = kinds >= 0 if measures_all else (kinds == 1) & (side.lengths > 1)
    units = side.units
    is_measured = (units >= 0) & is_needed[units.clamp(min=0)]
    inputs = LogProbInputs(
        student_logits=side.logits[None],
        step_ids=torch.where(is_measured, 0, -1)[None],
        ids=torch.full((1, side.ids.shape[0], 1), -1, device=side.ids.device),
        temperature=options.temperature,
        vocab_size=side.vocab_size,
    )
    return backend.log_probs_forward(inputs).row_state[0, :, RowState.STUDENT_LSE].clone()


def _label_logits(side: Side, is_used: Tensor) -> Tensor:
    """(rows,) float64 raw logit of each used row's label."""
    label = torch.where(is_used, side.ids, 0)
    return side.logits.gather(1, label[:, None]).squeeze(1).double()


def span_scores(side: Side, kinds: Tensor, lse: Tensor, options: UnitOptions) -> Tensor:
    """Score the spans, in raw logits beside those of their first rows.

    Args:
        side: One side.
        kinds: (U,) of the units.
        lse: (rows,) from `measure_rows`.
        options: For score and temperature.

    Returns:
        (U,) float64, -inf for a unit without a span column.
    """
    units, lengths, num_units = side.units, side.lengths, side.spans.shape[0]
    has_span = kinds == 1
    is_used = (units >= 0) & has_span[units.clamp(min=0)]
    segments = torch.where(is_used, units, -1)
    scores = segment_sums(_label_logits(side, is_used), segments, num_units) / lengths
    if options.score == "log_prob":
        first = lse[side.spans[:, 0].clamp(max=side.ids.shape[0] - 1)]
        shift = options.temperature * (first - segment_sums(lse, segments, num_units) / lengths)
        scores = torch.where(lengths > 1, scores + shift, scores)
    return torch.where(has_span, scores, -torch.inf)


def path_log_probs(side: Side, kinds: Tensor, lse: Tensor, temperature: float) -> Tensor:
    """Sum the log-probabilities of the tokens of compared units.

    Args:
        side: One side, all rows of compared units measured.
        kinds: (U,) of the units.
        lse: (rows,) from `measure_rows`.
        temperature: Divides the logits.

    Returns:
        (U,) float64 in nats, 0 for a unit that is not compared.
    """
    units = side.units
    is_used = (units >= 0) & (kinds >= 0)[units.clamp(min=0)]
    log_probs = _label_logits(side, is_used) / temperature - lse
    return segment_sums(log_probs, torch.where(is_used, units, -1), side.spans.shape[0])


def _gradient_of_spans(unit_state: Tensor, scores: Tensor, options: UnitOptions) -> Tensor:
    """(U,) float64 derivative of each unit's divergence by its span score over temperature."""
    columns = unit_state.unbind(-1)
    log_p = scores[:, 0] / options.temperature - columns[RowState.STUDENT_LSE]
    log_q = scores[:, 1] / options.temperature - columns[RowState.TEACHER_LSE]
    value, aux = columns[RowState.DIVERGENCE], columns[RowState.AUX]
    if options.divergence == "forward_kl":
        gradient = aux * log_p.exp() - log_q.exp()
    else:
        other = log_q
        if options.divergence == "jsd":
            other = torch.logaddexp(log_p + math.log1p(-options.beta), log_q + math.log(options.beta))
        factor = 1.0 - options.beta if options.divergence == "jsd" else 1.0
        score = factor * (log_p - other) - aux
        gradient = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * score)
    return torch.where(value == torch.inf, 0.0, gradient)


def gradient_terms(
    grad_unit_kl: Tensor,
    tensors: UnitTensors,
    unit_state: Tensor,
    scores: Tensor,
    student_lse: Tensor,
    options: UnitOptions,
) -> UnitGradients:
    """Work out what each student row's gradient is made of, beside that of the columns.

    Args:
        grad_unit_kl: (U,) upstream gradient.
        tensors: Of the batch.
        unit_state: (U, 7) from the forward sweep.
        scores: (U, 2) from `span_scores`.
        student_lse: (N,) from `measure_rows`.
        options: As in the forward op.

    Returns:
        What the backward sweep takes.
    """
    side = sides(tensors, options)[0]
    units, kinds = side.units, tensors.kinds
    unit = units.clamp(min=0)
    is_used = (units >= 0) & (kinds == 1)[unit]
    upstream = grad_unit_kl.double()
    derivative = _gradient_of_spans(unit_state, scores, options)
    per_unit = torch.where((kinds == 1) & (upstream != 0), upstream * derivative, 0.0)
    share = torch.where(is_used, (per_unit / side.lengths)[unit], 0.0)
    is_first = torch.arange(units.shape[0], device=units.device) == side.spans[unit, 0]
    if options.score == "log_prob":
        # The first row's log-sum-exp was added; with one token it cancels, exactly.
        dense = torch.where(is_used & is_first, per_unit[unit], 0.0) - share
    else:
        dense = torch.zeros_like(share)
    return UnitGradients(
        unit_kl=grad_unit_kl.contiguous(),
        row_units=torch.where((units >= 0) & is_first & (kinds >= 0)[unit], unit, -1),
        dense=dense,
        onehot=share,
        row_lse=student_lse,
        labels=torch.where(is_used, side.ids, 0),
    )
