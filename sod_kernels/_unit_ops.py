"""The two custom ops of `unit_kl`: spans scored and units compared forward, one gradient backward.

Built like the ops of `_autograd`: fake kernels, the backend as an argument, double backward refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._op_registry import Op, register, register_gradient
from sod_kernels._unit_scores import (
    Side,
    SpanTerms,
    UnitNumbers,
    UnitOptions,
    UnitTensors,
    gradient_terms,
    labelled_rows,
    measured_rows,
    sides,
    span_scores,
)
from sod_kernels.types import Backend, DivergenceSpec, LogProbInputs, RowState
from sod_kernels.unit_types import UnitInputs, UnitOpOutputs

_TENSORS = ", ".join(f"Tensor {name}" for name in UnitTensors._fields)
_OPTIONS = (
    "str score, bool measures_student, bool measures_teacher, SymInt student_vocab_size, "
    "SymInt teacher_vocab_size, str divergence, float beta, float temperature, str backend"
)
_FORWARD = (
    f"unit_kl_forward({_TENSORS}, {_OPTIONS}) -> (Tensor unit_kl, Tensor unit_entropy, Tensor unit_state, "
    "Tensor span_scores, Tensor student_lse, Tensor teacher_lse, Tensor student_label_logits, "
    "Tensor teacher_label_logits)"
)
_BACKWARD = (
    f"unit_kl_backward(Tensor grad_unit_kl, {_TENSORS}, Tensor unit_state, Tensor span_scores, "
    f"Tensor student_lse, {_OPTIONS}) -> Tensor"
)
_NUM_TENSORS = len(UnitTensors._fields)


def new_outputs(batch: UnitNumbers, dtype: torch.dtype) -> UnitOpOutputs:
    """Make zeros of the shapes that the op returns.

    Args:
        batch: For the numbers of rows and units.
        dtype: Of what is reported.

    Returns:
        The zeros.
    """
    kinds, student_ids, teacher_ids = batch.kinds, batch.student_ids, batch.teacher_ids
    num_units = kinds.shape[0]
    return UnitOpOutputs(
        unit_kl=kinds.new_zeros(num_units, dtype=dtype),
        unit_entropy=kinds.new_zeros(num_units, dtype=dtype),
        unit_state=kinds.new_zeros(num_units, len(RowState), dtype=torch.float64),
        span_scores=kinds.new_zeros(num_units, 2, dtype=torch.float64),
        student_lse=student_ids.new_zeros(student_ids.shape, dtype=torch.float64),
        teacher_lse=teacher_ids.new_zeros(teacher_ids.shape, dtype=torch.float64),
        student_label_logits=student_ids.new_zeros(student_ids.shape, dtype=torch.float64),
        teacher_label_logits=teacher_ids.new_zeros(teacher_ids.shape, dtype=torch.float64),
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


def _measure(
    logits: Tensor, side: Side, kinds: Tensor, options: UnitOptions, backend: Backend, *, measures_all: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows,) log-sum-exps and label logits, and (U,) span scores of one side."""
    lse = torch.zeros(side.ids.shape, dtype=torch.float64, device=side.ids.device)
    if measures_all or options.score == "log_prob":
        is_measured = measured_rows(side, kinds, options.score, measures_all=measures_all)
        inputs = LogProbInputs(
            student_logits=logits[None],
            step_ids=torch.where(is_measured, 0, -1)[None],
            ids=torch.full((1, side.ids.shape[0], 1), -1, device=side.ids.device),
            temperature=options.temperature,
            vocab_size=side.vocab_size,
        )
        lse = backend.log_probs_forward(inputs).row_state[0, :, RowState.STUDENT_LSE].clone()
    is_labelled = labelled_rows(side, kinds, measures_all=measures_all)
    labels = torch.where(is_labelled, side.ids, 0)
    label_logits = logits.gather(1, labels[:, None]).squeeze(1).double()
    scores = span_scores(side, kinds, lse, label_logits, score=options.score, temperature=options.temperature)
    return lse, torch.where(is_labelled, label_logits, 0.0), scores


def _vocab_sizes(options: UnitOptions) -> tuple[int, int]:
    return options.student_vocab_size, options.teacher_vocab_size


def _run_forward(*arguments: Any) -> UnitOpOutputs:
    tensors = UnitTensors(*arguments[:_NUM_TENSORS])
    options = UnitOptions(*arguments[_NUM_TENSORS:])
    dtype = torch.promote_types(tensors.student_logits.dtype, torch.float32)
    if tensors.kinds.shape[0] == 0:
        return new_outputs(tensors, dtype)
    backend = _dispatch.load(options.backend)
    logits = (tensors.student_logits, tensors.teacher_logits)
    measures_all = (options.measures_student, options.measures_teacher)
    measured = [
        _measure(of_side, side, tensors.kinds, options, backend, measures_all=is_all)
        for of_side, side, is_all in zip(
            logits, sides(tensors, _vocab_sizes(options)), measures_all, strict=True
        )
    ]
    lse, label_logits, scores = zip(*measured, strict=True)
    # A column like the others: rounded once, so that value and gradient are those of the same number.
    rounded = torch.stack(scores, -1).to(dtype).double()
    stats = backend.unit_forward(_inputs(tensors, rounded), _spec(tensors, options))
    return UnitOpOutputs(*stats, rounded, *lse, *label_logits)


def _fake_forward(*arguments: Any) -> UnitOpOutputs:
    tensors = UnitTensors(*arguments[:_NUM_TENSORS])
    return new_outputs(tensors, torch.promote_types(tensors.student_logits.dtype, torch.float32))


def _run_backward(grad_unit_kl: Tensor, *arguments: Any) -> Tensor:
    tensors = UnitTensors(*arguments[:_NUM_TENSORS])
    unit_state, scores, student_lse = arguments[_NUM_TENSORS : _NUM_TENSORS + 3]
    options = UnitOptions(*arguments[_NUM_TENSORS + 3 :])
    if tensors.kinds.shape[0] == 0:
        return tensors.student_logits.new_zeros(tensors.student_logits.shape)
    terms = SpanTerms(
        unit_state,
        scores,
        student_lse,
        options.score,
        options.divergence,
        options.beta,
        options.temperature,
    )
    student = sides(tensors, _vocab_sizes(options))[0]
    upstream = gradient_terms(grad_unit_kl, student, tensors.kinds, terms)
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
register_gradient(Op(_BACKWARD, _run_backward, _fake_backward), "unit_kl")

unit_kl_forward = torch.ops.sod_kernels.unit_kl_forward
unit_kl_backward = torch.ops.sod_kernels.unit_kl_backward
