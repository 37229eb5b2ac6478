"""The two custom ops of `unit_kl`: spans scored and units compared forward, one gradient backward.

Built like the ops of `_autograd`: fake kernels, the backend as an argument, double backward refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._op_registry import Op, refuse_double_backward, register
from sod_kernels._unit_scores import (
    UnitOptions,
    UnitTensors,
    gradient_terms,
    measure_rows,
    sides,
    span_scores,
)
from sod_kernels.types import DivergenceSpec, RowState
from sod_kernels.unit_types import UnitInputs

_TENSORS = ", ".join(f"Tensor {name}" for name in UnitTensors._fields)
_OPTIONS = (
    "str score, bool measures_student, bool measures_teacher, SymInt student_vocab_size, "
    "SymInt teacher_vocab_size, str divergence, float beta, float temperature, str backend"
)
_FORWARD = (
    f"unit_kl_forward({_TENSORS}, {_OPTIONS}) -> (Tensor unit_kl, Tensor unit_entropy, Tensor unit_state, "
    "Tensor span_scores, Tensor student_lse, Tensor teacher_lse)"
)
_BACKWARD = (
    f"unit_kl_backward(Tensor grad_unit_kl, {_TENSORS}, Tensor unit_state, Tensor span_scores, "
    f"Tensor student_lse, {_OPTIONS}) -> Tensor"
)
_NUM_TENSORS = len(UnitTensors._fields)


class UnitOpOutputs(NamedTuple):
    """What the forward op gives.

    Attributes:
        unit_kl: (U,) divergence, 0 at units that are not compared. Differentiable.
        unit_entropy: (U,).
        unit_state: (U, 7) float64, columns of `sod_kernels.types.RowState`.
        span_scores: (U, 2) float64, student and teacher, in raw logits; -inf without a span column.
        student_lse: (N,) float64 log-sum-exp of the rows that were measured, else 0.
        teacher_lse: (M,) float64, likewise.
    """

    unit_kl: Tensor
    unit_entropy: Tensor
    unit_state: Tensor
    span_scores: Tensor
    student_lse: Tensor
    teacher_lse: Tensor


def _new_outputs(tensors: UnitTensors) -> UnitOpOutputs:
    """Zeros of the shapes and dtypes that the op returns."""
    kinds, student_ids, teacher_ids = tensors.kinds, tensors.student_ids, tensors.teacher_ids
    dtype = torch.promote_types(tensors.student_logits.dtype, torch.float32)
    num_units = kinds.shape[0]
    return UnitOpOutputs(
        unit_kl=kinds.new_zeros(num_units, dtype=dtype),
        unit_entropy=kinds.new_zeros(num_units, dtype=dtype),
        unit_state=kinds.new_zeros(num_units, len(RowState), dtype=torch.float64),
        span_scores=kinds.new_zeros(num_units, 2, dtype=torch.float64),
        student_lse=student_ids.new_zeros(student_ids.shape, dtype=torch.float64),
        teacher_lse=teacher_ids.new_zeros(teacher_ids.shape, dtype=torch.float64),
    )


def _spec(tensors: UnitTensors, options: UnitOptions) -> DivergenceSpec:
    return DivergenceSpec(
        divergence=options.divergence,
        beta=options.beta,
        temperature=options.temperature,
        vocab_size=tensors.student_columns.shape[1],
        min_log_prob=None,
    )


def _inputs(tensors: UnitTensors, scores: Tensor) -> UnitInputs:
    is_compared = tensors.kinds >= 0
    return UnitInputs(
        student_logits=tensors.student_logits,
        teacher_logits=tensors.teacher_logits,
        student_columns=tensors.student_columns,
        teacher_columns=tensors.teacher_columns,
        student_rows=torch.where(is_compared, tensors.student_spans[:, 0], -1),
        teacher_rows=torch.where(is_compared, tensors.teacher_spans[:, 0], -1),
        excluded=tensors.excluded,
        span_scores=scores,
    )


def _run_forward(*arguments: Any) -> UnitOpOutputs:
    tensors = UnitTensors(*arguments[:_NUM_TENSORS])
    options = UnitOptions(*arguments[_NUM_TENSORS:])
    if tensors.kinds.shape[0] == 0:
        return _new_outputs(tensors)
    backend = _dispatch.load(options.backend)
    student, teacher = sides(tensors, options)
    kinds = tensors.kinds
    student_lse = measure_rows(student, kinds, options, backend, measures_all=options.measures_student)
    teacher_lse = measure_rows(teacher, kinds, options, backend, measures_all=options.measures_teacher)
    scores = torch.stack(
        [
            span_scores(student, kinds, student_lse, options),
            span_scores(teacher, kinds, teacher_lse, options),
        ],
        -1,
    )
    # A column like the others: rounded once, so that value and gradient are those of the same number.
    scores = scores.to(torch.promote_types(student.logits.dtype, torch.float32)).double()
    stats = backend.unit_forward(_inputs(tensors, scores), _spec(tensors, options))
    return UnitOpOutputs(*stats, scores, student_lse, teacher_lse)


def _fake_forward(*arguments: Any) -> UnitOpOutputs:
    return _new_outputs(UnitTensors(*arguments[:_NUM_TENSORS]))


def _run_backward(grad_unit_kl: Tensor, *arguments: Any) -> Tensor:
    tensors = UnitTensors(*arguments[:_NUM_TENSORS])
    unit_state, scores, student_lse = arguments[_NUM_TENSORS : _NUM_TENSORS + 3]
    options = UnitOptions(*arguments[_NUM_TENSORS + 3 :])
    if tensors.kinds.shape[0] == 0:
        return tensors.student_logits.new_zeros(tensors.student_logits.shape)
    upstream = gradient_terms(grad_unit_kl, tensors, unit_state, scores, student_lse, options)
    return _dispatch.load(options.backend).unit_backward(
        upstream, _inputs(tensors, scores), unit_state, _spec(tensors, options), options.student_vocab_size
    )


def _fake_backward(_grad: Tensor, student_logits: Tensor, *_rest: Any) -> Tensor:
    return student_logits.new_empty(student_logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    outputs = UnitOpOutputs(*output)
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.save_for_backward(
        *inputs[:_NUM_TENSORS], outputs.unit_state, outputs.span_scores, outputs.student_lse
    )
    ctx.options = inputs[_NUM_TENSORS:]


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grad = torch.ops.sod_kernels.unit_kl_backward(grads[0].contiguous(), *saved, *ctx.options)
    return (grad, *(None,) * (_NUM_TENSORS - 1 + len(ctx.options)))


register(Op(_FORWARD, _run_forward, _fake_forward), _differentiate, _setup_context)
register(Op(_BACKWARD, _run_backward, _fake_backward), refuse_double_backward("unit_kl"))

unit_kl_forward = torch.ops.sod_kernels.unit_kl_forward
unit_kl_backward = torch.ops.sod_kernels.unit_kl_backward
