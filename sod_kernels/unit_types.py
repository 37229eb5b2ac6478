"""The values that go in and out of the unit sweeps: two vocabularies, one row of shared columns per unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class UnitInputs(NamedTuple):
    """What both unit sweeps read, checked before a backend sees it.

    A unit's row is the shared columns of its first row on each side and, behind them, its span column.

    Attributes:
        student_logits: (N, width) floating, last stride 1.
        teacher_logits: (M, width) of the same dtype and device, last stride 1.
        student_columns: (1, C) or (U, C) int32, contiguous, ascending within a list.
        teacher_columns: Same shape, int32, contiguous.
        student_rows: (U,) int64, first row of each unit; -1 for a unit that is not compared.
        teacher_rows: (U,) int64, likewise.
        excluded: (U, 2) int64, contiguous: positions in the list that do not take part, -1 for none.
        span_scores: (U, 2) float64, contiguous: the span column of student and teacher in raw logits; -inf
            on both sides for a unit without one.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    student_columns: Tensor
    teacher_columns: Tensor
    student_rows: Tensor
    teacher_rows: Tensor
    excluded: Tensor
    span_scores: Tensor


class UnitStats(NamedTuple):
    """What the forward unit sweep gives; 0 at units that are not compared.

    `unit_kl` and `unit_entropy`, that of the student over the unit's row, are (U,) float32 (float64 for
    float64 logits); `unit_state` is (U, 7) float64 with the columns of `sod_kernels.types.RowState`.
    """

    unit_kl: Tensor
    unit_entropy: Tensor
    unit_state: Tensor


class UnitGradients(NamedTuple):
    """What the backward unit sweep gets beside its inputs; by student row unless said otherwise.

    The gradient of a row is that of the columns of the unit that begins there, and
    (dense * softmax(row) + onehot at the label) / temperature.

    Attributes:
        unit_kl: (U,) upstream gradient by unit, in the output's dtype.
        row_units: (N,) int64, the unit that begins at a row, -1 where none does.
        dense: (N,) float64, 0 where the whole row is not needed.
        onehot: (N,) float64.
        row_lse: (N,) float64 log-sum-exp of the whole row over temperature; anything where `dense` is 0.
        labels: (N,) int64, valid everywhere.
    """

    unit_kl: Tensor
    row_units: Tensor
    dense: Tensor
    onehot: Tensor
    row_lse: Tensor
    labels: Tensor


class UnitOpOutputs(NamedTuple):
    """What the forward op of either form gives, from logits or from hidden states.

    Attributes:
        unit_kl: (U,) divergence, 0 at units that are not compared. Differentiable.
        unit_entropy: (U,).
        unit_state: (U, 7) float64, columns of `sod_kernels.types.RowState`.
        span_scores: (U, 2) float64, student and teacher, in raw logits; -inf without a span column.
        student_lse: (N,) float64 log-sum-exp of the rows that were measured, else 0.
        teacher_lse: (M,) float64, likewise.
        student_label_logits: (N,) float64 raw logit of the labels that count, else 0.
        teacher_label_logits: (M,) float64, likewise.
    """

    unit_kl: Tensor
    unit_entropy: Tensor
    unit_state: Tensor
    span_scores: Tensor
    student_lse: Tensor
    teacher_lse: Tensor
    student_label_logits: Tensor
    teacher_label_logits: Tensor


@dataclass(frozen=True, kw_only=True)
class UnitKLOutput:
    """Result of `unit_kl`; unit tensors are (U,), step tensors (S,), in nats.

    Attributes:
        loss: Scalar, or (U,) with reduction "none". Differentiable.
        unit_kl: Divergence per unit, unweighted, 0 where a unit is not compared. Differentiable.
        unit_entropy: Entropy of the student over the columns that the unit compares, detached.
        unit_steps: Step of each unit, int64; -1 where it is not compared.
        step_divergence: Mean step divergence over the step's compared units, detached.
        step_weights: Weights that were applied, detached.
        step_tokens: Number of student tokens per step, in units or not, int64.
        step_units: Number of compared units per step, int64.
        unit_teacher_mass: Share of the teacher's probability that the compared columns hold; None without
            `min_teacher_mass`. Detached.
        unit_student_log_probs: Sum of the log-probabilities of the unit's tokens; None unless
            `step_divergence` is "abs_log_ratio". Detached.
        unit_teacher_log_probs: The teacher's, likewise.
        backend: Name of the backend that ran.
    """

    loss: Tensor
    unit_kl: Tensor
    unit_entropy: Tensor
    unit_steps: Tensor
    step_divergence: Tensor
    step_weights: Tensor
    step_tokens: Tensor
    step_units: Tensor
    unit_teacher_mass: Tensor | None
    unit_student_log_probs: Tensor | None
    unit_teacher_log_probs: Tensor | None
    backend: str
