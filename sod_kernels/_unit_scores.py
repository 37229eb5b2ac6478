"""Scores of spans from whole rows of logits, and how their gradient goes back to those rows.

A unit of k tokens on one side is scored with the mean of its tokens' log-probabilities ("log_prob") or of
their raw logits ("logit"). Both are expressed beside the logits of the unit's first row, that is with the
log-sum-exp of that row added to the former, so that they are one more column of it; see docs/math.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sod_kernels.segments import segment_sums
from sod_kernels.types import RowState
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


class UnitNumbers(Protocol):
    """What of a batch says which rows are which units, whatever the logits come from; see `UnitTensors`."""

    @property
    def student_ids(self) -> Tensor: ...
    @property
    def teacher_ids(self) -> Tensor: ...
    @property
    def student_spans(self) -> Tensor: ...
    @property
    def teacher_spans(self) -> Tensor: ...
    @property
    def kinds(self) -> Tensor: ...


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
        ids: (rows,) label of each row.
        spans: (U, 2).
        vocab_size: Valid columns.
    """

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

    def rows_of(self, is_chosen: Tensor) -> Tensor:
        """Tell which rows belong to chosen units.

        Args:
            is_chosen: (U,) bool.

        Returns:
            (rows,) bool.
        """
        units = self.units
        return (units >= 0) & is_chosen[units.clamp(min=0)]


def sides(batch: UnitNumbers, vocab_sizes: tuple[int, int]) -> tuple[Side, Side]:
    """Take a batch apart.

    Args:
        batch: With at least one unit where anything is looked up.
        vocab_sizes: Valid columns of student and teacher.

    Returns:
        The student's side and the teacher's.
    """
    return (
        Side(batch.student_ids, batch.student_spans, vocab_sizes[0]),
        Side(batch.teacher_ids, batch.teacher_spans, vocab_sizes[1]),
    )


def measured_rows(side: Side, kinds: Tensor, score: str, *, measures_all: bool) -> Tensor:
    """Tell which rows' normalisers count.

    Those are the rows of spans of several tokens, scored with log-probabilities; all others cancel.

    Args:
        side: One side.
        kinds: (U,) of the units.
        score: "log_prob" or "logit".
        measures_all: Whether all rows of compared units are measured.

    Returns:
        (rows,) bool.
    """
    if measures_all:
        return side.rows_of(kinds >= 0)
    return side.rows_of((kinds == 1) & (side.lengths > 1) & (score == "log_prob"))


def labelled_rows(side: Side, kinds: Tensor, *, measures_all: bool) -> Tensor:
    """Tell the logits of which rows' labels count: those of spans, or of all compared units.

    Args:
        side: One side.
        kinds: (U,) of the units.
        measures_all: Whether all rows of compared units are measured.

    Returns:
        (rows,) bool.
    """
    return side.rows_of(kinds >= (0 if measures_all else 1))


def span_scores(
    side: Side, kinds: Tensor, lse: Tensor, label_logits: Tensor, *, score: str, temperature: float
) -> Tensor:
    """Score the spans, in raw logits beside those of their first rows.

    Args:
        side: One side.
        kinds: (U,) of the units.
        lse: (rows,) float64 log-sum-exp of the rows of `measured_rows`, over temperature; 0 elsewhere.
        label_logits: (rows,) float64 raw logit of the label of the rows of `labelled_rows`.
        score: "log_prob" or "logit".
        temperature: Divides all logits.

    Returns:
        (U,) float64, -inf for a unit without a span column.
    """
    units, lengths, num_units = side.units, side.lengths, side.spans.shape[0]
    has_span = kinds == 1
    segments = torch.where(side.rows_of(has_span), units, -1)
    scores = segment_sums(label_logits, segments, num_units) / lengths
    if score == "log_prob":
        first = lse[side.spans[:, 0].clamp(max=side.ids.shape[0] - 1)]
        shift = temperature * (first - segment_sums(lse, segments, num_units) / lengths)
        scores = torch.where(lengths > 1, scores + shift, scores)
    return torch.where(has_span, scores, -torch.inf)


def path_log_probs(
    side: Side, kinds: Tensor, lse: Tensor, label_logits: Tensor, temperature: float
) -> Tensor:
    """Sum the log-probabilities of the tokens of compared units.

    Args:
        side: One side, all rows of compared units measured.
        kinds: (U,) of the units.
        lse: As in `span_scores`.
        label_logits: As in `span_scores`.
        temperature: Divides the logits.

    Returns:
        (U,) float64 in nats, 0 for a unit that is not compared.
    """
    segments = torch.where(side.rows_of(kinds >= 0), side.units, -1)
    return segment_sums(label_logits / temperature - lse, segments, side.spans.shape[0])


class SpanTerms(NamedTuple):
    """What the forward pass left of the span columns, and how to read it.

    Attributes:
        unit_state: (U, 7) float64 from the forward sweep.
        scores: (U, 2) float64 from `span_scores`, student and teacher.
        student_lse: (N,) float64, as in `span_scores`.
        score: "log_prob" or "logit".
        divergence: As a backend takes it.
        beta: As a backend takes it.
        temperature: Divides all logits.
    """

    unit_state: Tensor
    scores: Tensor
    student_lse: Tensor
    score: str
    divergence: str
    beta: float
    temperature: float


def _gradient_of_spans(terms: SpanTerms) -> Tensor:
    """(U,) float64 derivative of each unit's divergence by its span score over temperature."""
    columns = terms.unit_state.unbind(-1)
    log_p = terms.scores[:, 0] / terms.temperature - columns[RowState.STUDENT_LSE]
    log_q = terms.scores[:, 1] / terms.temperature - columns[RowState.TEACHER_LSE]
    value, aux = columns[RowState.DIVERGENCE], columns[RowState.AUX]
    if terms.divergence == "forward_kl":
        gradient = aux * log_p.exp() - log_q.exp()
    else:
        is_jsd = terms.divergence == "jsd"
        other = log_q
        if is_jsd:
            other = torch.logaddexp(log_p + math.log1p(-terms.beta), log_q + math.log(terms.beta))
        factor = 1.0 - terms.beta if is_jsd else 1.0
        score = factor * (log_p - other) - aux
        gradient = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * score)
    return torch.where(value == torch.inf, 0.0, gradient)


def gradient_terms(grad_unit_kl: Tensor, side: Side, kinds: Tensor, terms: SpanTerms) -> UnitGradients:
    """Work out what each student row's gradient is made of, beside that of the columns.

    Args:
        grad_unit_kl: (U,) upstream gradient.
        side: The student's.
        kinds: (U,) of the units.
        terms: Of the forward pass.

    Returns:
        What the backward sweep takes.
    """
    units = side.units
    unit = units.clamp(min=0)
    is_used = side.rows_of(kinds == 1)
    upstream = grad_unit_kl.double()
    per_unit = torch.where((kinds == 1) & (upstream != 0), upstream * _gradient_of_spans(terms), 0.0)
    share = torch.where(is_used, (per_unit / side.lengths)[unit], 0.0)
    is_first = torch.arange(units.shape[0], device=units.device) == side.spans[unit, 0]
    if terms.score == "log_prob":
        # The first row's log-sum-exp was added; with one token it cancels, exactly.
        dense = torch.where(is_used & is_first, per_unit[unit], 0.0) - share
    else:
        dense = torch.zeros_like(share)
    return UnitGradients(
        unit_kl=grad_unit_kl.contiguous(),
        row_units=torch.where((units >= 0) & is_first & (kinds >= 0)[unit], unit, -1),
        dense=dense,
        onehot=share,
        row_lse=terms.student_lse,
        labels=torch.where(is_used, side.ids, 0),
    )
