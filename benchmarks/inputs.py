"""Tensors of a case: a few dozen distinct rows, each repeated, so that float64 truth stays cheap at any N.

No dense op can tell repeated rows from others: they lie at different addresses and cost the same. The
truth needs only the distinct ones. Rows of later steps diverge more, so that step weights differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.shapes import DTYPES, Case

NUM_DISTINCT = 32
# Standard deviation of a language model's logits, roughly.
_SPREAD = 4.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which distinct row every token repeats, and its step.

    Attributes:
        source: (N,) int64, the distinct row; not decreasing.
        step_ids: (N,) int64, 0 .. num_steps - 1; a function of `source`.
        num_distinct: Number of distinct rows R.
        num_steps: Number of steps S.
    """

    source: Tensor
    step_ids: Tensor
    num_distinct: int
    num_steps: int

    def step_of_source(self) -> Tensor:
        """Step (R,) of each distinct row."""
        return (
            torch.arange(self.num_distinct, device=self.source.device) * self.num_steps // self.num_distinct
        )

    def counts(self) -> Tensor:
        """How often each distinct row occurs (R,)."""
        return torch.bincount(self.source, minlength=self.num_distinct)

    def firsts(self) -> Tensor:
        """Row (R,) at which each distinct row occurs first."""
        return self.counts().cumsum(0) - self.counts()


@dataclass(frozen=True, kw_only=True)
class LogitsInputs:
    """Inputs of `step_kl`: student (N, V), a leaf, and teacher (N, V)."""

    case: Case
    rows: Rows
    student: Tensor
    teacher: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gets a gradient."""
        return (self.student,)


@dataclass(frozen=True, kw_only=True)
class TopKInputs:
    """Inputs of `topk_step_kl`: student (N, V), a leaf; the teacher's K best log-probs and ids (N, K)."""

    case: Case
    rows: Rows
    student: Tensor
    teacher_log_probs: Tensor
    teacher_ids: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gets a gradient."""
        return (self.student,)


@dataclass(frozen=True, kw_only=True)
class HiddenInputs:
    """Inputs of `linear_step_kl`: hidden states (N, d) and heads (V, d); the student's are leaves."""

    case: Case
    rows: Rows
    student: Tensor
    student_head: Tensor
    teacher: Tensor
    teacher_head: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What gets a gradient."""
        return (self.student, self.student_head)


Inputs = LogitsInputs | TopKInputs | HiddenInputs


def make_inputs(case: Case, device: str) -> Inputs:
    """Draw the tensors of a case, the same on every call.

    Args:
        case: Op, models, rows, dtype.
        device: "cpu" or "cuda".

    Returns:
        The inputs of its op.
    """
    generator = torch.Generator(device).manual_seed(0)
    rows = _make_rows(case, device)
    if case.op == "linear_step_kl":
        return _make_hidden(case, rows, generator)
    student = _SPREAD * _normal(rows.num_distinct, case.pair.vocab, generator=generator)
    teacher = student + _gaps(rows) * _normal(*student.shape, generator=generator)
    dtype = DTYPES[case.dtype]
    # The leaf is made from the copy, so that nothing else holds on to it.
    leaf = student.to(dtype)[rows.source].requires_grad_()
    if case.op == "step_kl":
        return LogitsInputs(case=case, rows=rows, student=leaf, teacher=teacher.to(dtype)[rows.source])
    log_probs, ids = teacher.log_softmax(-1).topk(case.top_k)
    return TopKInputs(
        case=case,
        rows=rows,
        student=leaf,
        teacher_log_probs=log_probs[rows.source],
        teacher_ids=ids[rows.source],
    )


def _make_rows(case: Case, device: str) -> Rows:
    num_distinct = min(NUM_DISTINCT, case.rows)
    source = torch.arange(case.rows, device=device) * num_distinct // case.rows
    num_steps = min(case.num_steps, num_distinct)
    return Rows(
        source=source,
        step_ids=source * num_steps // num_distinct,
        num_distinct=num_distinct,
        num_steps=num_steps,
    )


def _make_hidden(case: Case, rows: Rows, generator: torch.Generator) -> HiddenInputs:
    pair, dtype = case.pair, DTYPES[case.dtype]
    scale = _SPREAD / math.sqrt(pair.student_width)

    def head(width: int) -> Tensor:
        made = torch.empty(pair.vocab, width, dtype=dtype, device=generator.device)
        return made.normal_(0.0, scale, generator=generator)

    student_head, teacher_head = head(pair.student_width), head(pair.teacher_width)
    # Both heads agree on the columns they share; the noise of the rest is what the models disagree about.
    shared = min(pair.student_width, pair.teacher_width)
    teacher_head[:, :shared] = student_head[:, :shared]
    student = _normal(rows.num_distinct, pair.student_width, generator=generator)
    teacher = 0.25 * _gaps(rows) * _normal(rows.num_distinct, pair.teacher_width, generator=generator)
    teacher[:, :shared] += student[:, :shared]
    return HiddenInputs(
        case=case,
        rows=rows,
        student=student.to(dtype)[rows.source].requires_grad_(),
        student_head=student_head.requires_grad_(),
        teacher=teacher.to(dtype)[rows.source],
        teacher_head=teacher_head,
    )


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, device=generator.device)


def _gaps(rows: Rows) -> Tensor:
    # (R, 1), from half a unit of logits to one and a half.
    return 0.5 + torch.arange(rows.num_distinct, device=rows.source.device)[:, None] / rows.num_distinct
