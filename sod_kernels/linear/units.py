"""Units of two tokenisers from hidden states: what has to be multiplied, and the walks that multiply it.

A unit is compared over the shared columns at its first row on either side: those rows of the two heads are
selected once, and the units are the rows of a `ChunkSweep` over them, with the span as one more column whose
logit is known before. Known it is from the rows of spans: the logit of each row's own token, one product of
two vectors, and for a span of several tokens scored with log-probabilities the log-sum-exp of its rows over
the whole vocabulary, a walk over those rows alone.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels._unit_scores import (
    Side,
    SpanTerms,
    gradient_terms,
    labelled_rows,
    measured_rows,
    sides,
    span_scores,
)
from sod_kernels.linear.double import run_backward, run_forward
from sod_kernels.linear.heads import Head, Wanted
from sod_kernels.linear.inputs import LinearInputs, LinearOptions
from sod_kernels.linear.unit_sweep import UnitColumns, UnitSweep
from sod_kernels.native import memory
from sod_kernels.types import RowState, TokenGradients
from sod_kernels.unit_types import UnitOpOutputs


class LinearUnitTensors(NamedTuple):
    """What the ops take, checked before; N student and M teacher rows, U units, C shared columns.

    Attributes:
        student_hidden: (N, H).
        student_weight: (>= vocab_size, H).
        student_bias: (>= vocab_size,) or None.
        teacher_hidden: (M, H of the teacher).
        teacher_weight: (>= vocab_size of the teacher, its H).
        teacher_bias: As the student's.
        student_ids: (N,) int64 label of each row, valid in compared units.
        teacher_ids: (M,) int64, likewise.
        student_spans: (U, 2) int64, ascending and disjoint.
        teacher_spans: (U, 2) int64, likewise.
        kinds: (U,) int64: -1 not compared, 0 over the columns alone, 1 with a span column.
        steps: (U,) int64 step of each unit, -1 where it is not compared.
        student_columns: (C,) int64.
        teacher_columns: (C,) int64.
        excluded: (U, 2) int64 positions among the columns that do not take part, -1 for none.
    """

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor | None
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    student_ids: Tensor
    teacher_ids: Tensor
    student_spans: Tensor
    teacher_spans: Tensor
    kinds: Tensor
    steps: Tensor
    student_columns: Tensor
    teacher_columns: Tensor
    excluded: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of chunk logits and outputs: float64 if any input has it, else float32."""
        wide = (tensor.dtype for tensor in self[:6] if tensor is not None)
        return torch.float64 if torch.float64 in wide else torch.float32


class LinearUnitOptions(NamedTuple):
    """Options of the ops, in the order of their schema.

    Attributes:
        num_steps: S.
        score: "log_prob" or "logit".
        measures_student: Whether to measure all rows of compared units on the student's side.
        measures_teacher: The same on the teacher's side.
        student_vocab_size: Valid rows of the student's head.
        teacher_vocab_size: Valid rows of the teacher's.
        student_scale: Factor of the student's product, as the teacher's.
        teacher_scale: See above.
        student_softcap: Bound of the student's logits or None, as the teacher's.
        teacher_softcap: See above.
        divergence: As a backend takes it.
        beta: As a backend takes it.
        temperature: Divides all logits.
        topk: Columns that each unit compares; 0 for all.
        chunk_size: Most rows of a chunk; 0 for the default.
        backend: Resolved name.
        function: Name for messages.
    """

    num_steps: int
    score: str
    measures_student: bool
    measures_teacher: bool
    student_vocab_size: int
    teacher_vocab_size: int
    student_scale: float
    teacher_scale: float
    student_softcap: float | None
    teacher_softcap: float | None
    divergence: str
    beta: float
    temperature: float
    topk: int
    chunk_size: int
    backend: str
    function: str


class SideScores(NamedTuple):
    """What is known of one side before its units are compared.

    Attributes:
        lse: (rows,) float64 log-sum-exp of the rows that count, else 0.
        label_logits: (rows,) float64 raw logit of the labels that count, else 0.
        scores: (U,) float64 of the spans in raw logits, -inf without one.
    """

    lse: Tensor
    label_logits: Tensor
    scores: Tensor


class LinearUnits:
    """One batch: scores its spans, makes the walk over its units, and takes gradients back to the head."""

    def __init__(self, tensors: LinearUnitTensors, options: LinearUnitOptions) -> None:
        """Put together what belongs to each side.

        Args:
            tensors: Of the batch, with at least one unit.
            options: Numbers and names.
        """
        self._tensors, self._options, self.dtype = tensors, options, tensors.dtype
        self._student, self._teacher = sides(
            tensors, (options.student_vocab_size, options.teacher_vocab_size)
        )
        self._heads = (
            _widened(Head(*tensors[:3], options.student_scale, options.student_softcap), self.dtype),
            _widened(Head(*tensors[3:6], options.teacher_scale, options.teacher_softcap), self.dtype),
        )

    def score(self) -> tuple[SideScores, SideScores]:
        """Score the spans of both sides.

        Returns:
            The student's and the teacher's, the spans' rounded as a logit is.
        """
        options = self._options
        measures_all = (options.measures_student, options.measures_teacher)
        student, teacher = (
            self._score_side(head, side, is_all)
            for head, side, is_all in zip(
                self._heads, (self._student, self._teacher), measures_all, strict=True
            )
        )
        return student, teacher

    def _score_side(self, head: Head, side: Side, measures_all: bool) -> SideScores:
        options, kinds = self._options, self._tensors.kinds
        is_measured = measured_rows(side, kinds, options.score, measures_all=measures_all)
        lse = run_forward(*self._over_rows(head, side, is_measured)).row_state[:, RowState.STUDENT_LSE]
        is_labelled = labelled_rows(side, kinds, measures_all=measures_all)
        label_logits = _label_logits(head, side, is_labelled, self.dtype)
        scores = span_scores(
            side, kinds, lse, label_logits, score=options.score, temperature=options.temperature
        )
        # A column like the others: rounded once, so that value and gradient are those of the same number.
        return SideScores(lse.clone(), label_logits, scores.to(self.dtype).double())

    def _over_rows(self, head: Head, side: Side, is_walked: Tensor) -> tuple[LinearInputs, LinearOptions]:
        """Inputs and options of a walk over some whole rows of one side."""
        inputs = LinearInputs(
            student_hidden=head.hidden,
            student_weight=head.weight,
            student_bias=head.bias,
            teacher_hidden=None,
            teacher_weight=None,
            teacher_bias=None,
            reference_hidden=None,
            reference_weight=None,
            reference_bias=None,
            step_ids=torch.where(is_walked, 0, -1),
            sampled_ids=torch.where(is_walked, side.ids, 0),
        )
        return inputs, self._linear_options(head, None, side.vocab_size, num_steps=1)

    def _linear_options(
        self, student: Head, teacher: Head | None, vocab_size: int, *, num_steps: int
    ) -> LinearOptions:
        options = self._options
        return LinearOptions(
            num_steps=num_steps,
            student_scale=student.scale,
            teacher_scale=1.0 if teacher is None else teacher.scale,
            reference_scale=1.0,
            student_softcap=student.softcap,
            teacher_softcap=None if teacher is None else teacher.softcap,
            reference_softcap=None,
            divergence=options.divergence,
            beta=options.beta,
            temperature=options.temperature,
            vocab_size=vocab_size,
            min_log_prob=None,
            chunk_size=options.chunk_size,
            backend=options.backend,
            function=options.function,
        )

    def over_columns(
        self, student: SideScores, teacher: SideScores
    ) -> tuple[LinearInputs, LinearOptions, partial[UnitSweep]]:
        """Write the units as rows over the shared columns.

        Args:
            student: From `score`.
            teacher: From `score`.

        Returns:
            Inputs and options of a walk, and what makes it of them.
        """
        tensors, heads = self._tensors, self._heads
        picked = [
            (
                head.hidden.index_select(0, spans[:, 0]),
                _selected(head.weight, columns),
                None if head.bias is None else head.bias.index_select(0, columns),
            )
            for head, spans, columns in zip(
                heads,
                (tensors.student_spans, tensors.teacher_spans),
                (tensors.student_columns, tensors.teacher_columns),
                strict=True,
            )
        ]
        inputs = LinearInputs(
            *picked[0],
            *picked[1],
            reference_hidden=None,
            reference_weight=None,
            reference_bias=None,
            step_ids=torch.where(tensors.kinds >= 0, tensors.steps, -1),
            sampled_ids=None,
        )
        num_columns = tensors.student_columns.shape[0]
        options = self._linear_options(*heads, num_columns, num_steps=self._options.num_steps)
        scores = torch.stack((student.scores, teacher.scores), -1).to(self.dtype)
        columns = UnitColumns(scores, tensors.excluded, self._options.topk)
        return inputs, options, partial(UnitSweep, columns=columns)

    def finish_gradients(
        self,
        of_units: tuple[Tensor, Tensor, Tensor],
        grad_unit_kl: Tensor,
        outputs: UnitOpOutputs,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bring the gradients of the walk over units home, and add those of the span columns.

        Args:
            of_units: Of the units' first hidden states, selected weight and bias, (0,) where not wanted.
            grad_unit_kl: (U,) upstream gradient.
            outputs: Of the forward pass.
            wanted: Which gradients are asked for.

        Returns:
            Gradients of hidden states, weight and bias in the computing dtype, (0,) where not wanted.
        """
        options, tensors, head = self._options, self._tensors, self._heads[0]
        terms = SpanTerms(
            outputs.unit_state,
            outputs.span_scores,
            outputs.student_lse,
            options.score,
            options.divergence,
            options.beta,
            options.temperature,
        )
        rows = gradient_terms(grad_unit_kl, self._student, tensors.kinds, terms)
        is_walked = measured_rows(self._student, tensors.kinds, options.score, measures_all=False)
        nothing = torch.zeros_like(rows.dense, dtype=self.dtype)
        # At its own token a row's log-probability has the gradient (its weight); what is left comes below.
        upstream = TokenGradients(nothing, nothing[:0], -rows.dense.to(self.dtype), nothing)
        lse = outputs.student_lse
        state = torch.stack((lse, torch.zeros_like(lse)), -1)
        row_inputs = self._over_rows(head, self._student, is_walked)
        totals = run_backward(upstream, *row_inputs, state, wanted)
        homes = (tensors.student_spans[:, 0], tensors.student_columns, tensors.student_columns)
        for total, part, home, is_wanted in zip(totals, of_units, homes, wanted, strict=True):
            if is_wanted:
                # Each row of the batch and of the head is named once.
                total.index_add_(0, home, part)
        per_label = rows.dense + rows.onehot
        label_logits = outputs.student_label_logits
        _add_labels(totals, head, self._student, per_label, label_logits, options.temperature)
        return totals


def _selected(weight: Tensor, columns: Tensor) -> Tensor:
    """(C, H) the shared rows of a head, as large as most of it."""
    out = memory.empty((columns.shape[0], weight.shape[1]), weight.dtype, weight.device)
    return torch.index_select(weight, 0, columns, out=out)


def _widened(head: Head, dtype: torch.dtype) -> Head:
    """A head beside one of float64 computes in float64 too."""
    if dtype != torch.float64:
        return head
    bias = None if head.bias is None else head.bias.to(dtype)
    return head._replace(hidden=head.hidden.to(dtype), weight=head.weight.to(dtype), bias=bias)


def _label_logits(head: Head, side: Side, is_labelled: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows,) float64 raw logit of each labelled row's own token, one product of two vectors; else 0."""
    rows = torch.nonzero(is_labelled).flatten()
    labels = side.ids[rows]
    logits = (head.hidden[rows].to(dtype) * head.weight[labels].to(dtype)).sum(-1) * head.scale
    if head.bias is not None:
        logits = logits + head.bias[labels].to(dtype)
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    total = torch.zeros(side.ids.shape, dtype=torch.float64, device=rows.device)
    return total.index_copy_(0, rows, logits.double())


def _add_labels(
    totals: tuple[Tensor, Tensor, Tensor],
    head: Head,
    side: Side,
    per_row: Tensor,
    label_logits: Tensor,
    temperature: float,
) -> None:
    """Add the gradient of the rows' own logits over temperature, in place."""
    rows = torch.nonzero(per_row).flatten()
    labels, slope = side.ids[rows], per_row[rows] / temperature
    if head.softcap is not None:
        slope = slope * (1.0 - (label_logits[rows] / head.softcap) ** 2)
    hidden, weight, bias = totals
    if bias.numel():
        _add_at(bias, labels, slope.to(bias.dtype))
    factor = (slope * head.scale).to(hidden.dtype)[:, None]
    if hidden.numel():
        hidden.index_add_(0, rows, factor * head.weight[labels].to(hidden.dtype))
    if weight.numel():
        _add_at(weight, labels, factor.to(weight.dtype) * head.hidden[rows].to(weight.dtype))


def _add_at(total: Tensor, index: Tensor, values: Tensor) -> None:
    """Add rows where some may be named twice, in the same order at every run."""
    if total.device.type == "cuda":
        # Sorts; index_add_ would add in the order of the threads there, as this would on the CPU.
        total.index_put_((index,), values, accumulate=True)
    else:
        total.index_add_(0, index, values)
