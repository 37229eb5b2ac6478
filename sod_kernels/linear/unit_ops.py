"""The custom ops of `linear_unit_kl`: a single sweep, and the two of the two-sweep mode.

Built like those of `linear_step_kl`, whose walks they share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sod_kernels._kept_gradients import gradients_of_all, remember_learned, scale_gradients
from sod_kernels._op_registry import Op, register, register_gradient
from sod_kernels._reduction import token_factors
from sod_kernels._unit_ops import new_outputs
from sod_kernels.linear.double import run_backward, run_forward
from sod_kernels.linear.heads import Wanted
from sod_kernels.linear.inputs import Objective
from sod_kernels.linear.ops import keep_head_gradients
from sod_kernels.linear.single import SingleSweep
from sod_kernels.linear.units import LinearUnitOptions, LinearUnits, LinearUnitTensors, SideScores
from sod_kernels.types import TokenGradients, TokenStats
from sod_kernels.unit_types import UnitOpOutputs

_TENSORS = (
    "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor teacher_hidden, "
    "Tensor teacher_weight, Tensor? teacher_bias, Tensor student_ids, Tensor teacher_ids, "
    "Tensor student_spans, Tensor teacher_spans, Tensor kinds, Tensor steps, Tensor student_columns, "
    "Tensor teacher_columns, Tensor excluded"
)
_OPTIONS = (
    "SymInt num_steps, str score, bool measures_student, bool measures_teacher, SymInt student_vocab_size, "
    "SymInt teacher_vocab_size, float student_scale, float teacher_scale, float? student_softcap, "
    "float? teacher_softcap, str divergence, float beta, float temperature, SymInt topk, SymInt chunk_size, "
    "str backend, str function"
)
_UNITS = (
    "Tensor unit_kl, Tensor unit_entropy, Tensor unit_state, Tensor span_scores, Tensor student_lse, "
    "Tensor teacher_lse, Tensor student_label_logits, Tensor teacher_label_logits"
)
_WANTED = "bool wants_hidden, bool wants_weight, bool wants_bias"
_GRADIENTS = "Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias"
_OBJECTIVE = (
    "Tensor step_trajectory, Tensor? step_weights, Tensor unit_factors, Tensor denominator, float? delta, "
    "float? epsilon"
)
_FORWARD = f"linear_unit_kl_forward({_TENSORS}, {_OPTIONS}) -> ({_UNITS})"
_BACKWARD = (
    "linear_unit_kl_backward(Tensor grad_unit_kl, Tensor unit_state, Tensor span_scores, Tensor student_lse, "
    "Tensor teacher_lse, Tensor student_label_logits, Tensor teacher_label_logits, "
    f"{_WANTED}, {_TENSORS}, {_OPTIONS}) -> ({_GRADIENTS})"
)
_LOSS = (
    f"linear_unit_kl_loss({_TENSORS}, {_OPTIONS}, {_OBJECTIVE}, {_WANTED}) -> (Tensor loss, {_UNITS}, "
    f"Tensor applied_weights, {_GRADIENTS})"
)
_NUM_TENSORS, _NUM_OPTIONS = len(LinearUnitTensors._fields), len(LinearUnitOptions._fields)
_NUM_BOTH = _NUM_TENSORS + _NUM_OPTIONS
_NUM_LEARNED = len(Wanted._fields)
# What the backward op takes first: the upstream gradient, and what the forward op gave but for two.
_NUM_KEPT = len(UnitOpOutputs._fields) - 1


class UnitObjective(NamedTuple):
    """What the single sweep makes a loss of, besides tensors and options.

    Attributes:
        step_trajectory: (S,) integer.
        step_weights: (S,) where they are known beforehand, or None.
        unit_factors: (U,) token weight over the inner divisor of the unit's step.
        denominator: Scalar, the outer divisor.
        delta: Of `SodWeighting`, None for another weighting.
        epsilon: Of `SodWeighting`, None for another weighting.
    """

    step_trajectory: Tensor
    step_weights: Tensor | None
    unit_factors: Tensor
    denominator: Tensor
    delta: float | None
    epsilon: float | None

    def of_rows(self) -> Objective:
        """Write it as that of a walk over units as rows, whose sum is divided by the denominator."""
        return Objective(
            step_trajectory=self.step_trajectory,
            step_weights=self.step_weights,
            token_weights=self.unit_factors,
            denominator=self.denominator,
            advantages=None,
            old_log_probs=None,
            weighting=0,
            delta=self.delta,
            epsilon=self.epsilon,
            clip_low=0.0,
            clip_high=0.0,
            dual_clip=None,
            kl_coefficient=1.0,
            entropy_coefficient=0.0,
            step_divergence="kl",
            reduction="sum",
        )


class UnitLossOutputs(NamedTuple):
    """What the op of the single sweep gives; a gradient that is not wanted has shape (0,)."""

    loss: Tensor
    units: UnitOpOutputs
    step_weights: Tensor
    gradients: tuple[Tensor, Tensor, Tensor]

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """In the order of the schema."""
        return (self.loss, *self.units, self.step_weights, *self.gradients)

    @classmethod
    def named(cls, outputs: tuple[Tensor, ...]) -> UnitLossOutputs:
        """Name what the op returned."""
        loss, *units, weights, hidden, weight, bias = outputs
        return cls(loss, UnitOpOutputs(*units), weights, (hidden, weight, bias))


def _split(arguments: tuple[Any, ...]) -> tuple[LinearUnitTensors, LinearUnitOptions, tuple[Any, ...]]:
    tensors = LinearUnitTensors(*arguments[:_NUM_TENSORS])
    return tensors, LinearUnitOptions(*arguments[_NUM_TENSORS:_NUM_BOTH]), arguments[_NUM_BOTH:]


def _new_gradients(tensors: LinearUnitTensors, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros of the shapes of the gradients."""

    def gradient(like: Tensor | None, is_wanted: bool) -> Tensor:
        shape = like.shape if like is not None and is_wanted else (0,)
        return tensors.student_hidden.new_zeros(shape, dtype=tensors.dtype)

    hidden, weight, bias = (
        gradient(like, is_wanted) for like, is_wanted in zip(tensors[:_NUM_LEARNED], wanted, strict=True)
    )
    return hidden, weight, bias


def _name_outputs(stats: TokenStats, student: SideScores, teacher: SideScores) -> UnitOpOutputs:
    return UnitOpOutputs(
        unit_kl=stats.token_kl,
        unit_entropy=stats.student_entropy,
        unit_state=stats.row_state,
        span_scores=torch.stack((student.scores, teacher.scores), -1),
        student_lse=student.lse,
        teacher_lse=teacher.lse,
        student_label_logits=student.label_logits,
        teacher_label_logits=teacher.label_logits,
    )


def _run_forward(*arguments: Any) -> UnitOpOutputs:
    tensors, options, _ = _split(arguments)
    if tensors.kinds.shape[0] == 0:
        return new_outputs(tensors, tensors.dtype)
    units = LinearUnits(tensors, options)
    scores = units.score()
    inputs, row_options, make_sweep = units.over_columns(*scores)
    return _name_outputs(run_forward(inputs, row_options, make_sweep=make_sweep), *scores)


def _fake_forward(*arguments: Any) -> UnitOpOutputs:
    tensors = _split(arguments)[0]
    return new_outputs(tensors, tensors.dtype)


def _split_backward(
    arguments: tuple[Any, ...],
) -> tuple[Tensor, UnitOpOutputs, Wanted, LinearUnitTensors, LinearUnitOptions]:
    grad, *kept = arguments[:_NUM_KEPT]
    wanted = Wanted(*arguments[_NUM_KEPT : _NUM_KEPT + _NUM_LEARNED])
    tensors, options, _ = _split(arguments[_NUM_KEPT + _NUM_LEARNED :])
    # Divergence and entropy are not read again.
    return grad, UnitOpOutputs(grad, grad, *kept), wanted, tensors, options


def _run_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad, outputs, wanted, tensors, options = _split_backward(arguments)
    if tensors.kinds.shape[0] == 0:
        return _new_gradients(tensors, wanted)
    units = LinearUnits(tensors, options)
    scores = outputs.span_scores.unbind(-1)
    student = SideScores(outputs.student_lse, outputs.student_label_logits, scores[0])
    teacher = SideScores(outputs.teacher_lse, outputs.teacher_label_logits, scores[1])
    inputs, row_options, make_sweep = units.over_columns(student, teacher)
    nothing = torch.zeros_like(grad)
    of_units = run_backward(
        TokenGradients(grad, nothing[:0], nothing[:0], nothing),
        inputs,
        row_options,
        outputs.unit_state,
        wanted,
        make_sweep=make_sweep,
    )
    return units.finish_gradients(of_units, grad, outputs, wanted)


def _fake_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, wanted, tensors, _ = _split_backward(arguments)
    return _new_gradients(tensors, wanted)


def _split_loss(
    arguments: tuple[Any, ...],
) -> tuple[LinearUnitTensors, LinearUnitOptions, UnitObjective, Wanted]:
    tensors, options, others = _split(arguments)
    return tensors, options, UnitObjective(*others[:-_NUM_LEARNED]), Wanted(*others[-_NUM_LEARNED:])


def _run_loss(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, objective, wanted = _split_loss(arguments)
    if tensors.kinds.shape[0] == 0:
        return _fake_loss(*arguments)
    units = LinearUnits(tensors, options)
    scores = units.score()
    inputs, row_options, make_sweep = units.over_columns(*scores)
    walk = SingleSweep(
        inputs, row_options, objective.of_rows(), wanted, make_sweep=make_sweep, has_row_state=True
    )
    walk.run()
    outputs = _name_outputs(walk.ledger.outputs(), *scores)
    weights, gradients = walk.running.per_step(), _new_gradients(tensors, Wanted(False, False, False))
    if any(wanted):
        factors = token_factors(weights, inputs.step_ids, objective.unit_factors) / objective.denominator
        gradients = units.finish_gradients(walk.gradients.finished(), factors, outputs, wanted)
    return UnitLossOutputs(walk.loss(), outputs, weights, gradients).flat


def _fake_loss(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, _, wanted = _split_loss(arguments)
    outputs = new_outputs(tensors, tensors.dtype)
    weights = outputs.unit_kl.new_zeros((options.num_steps,))
    gradients = _new_gradients(tensors, wanted)
    return UnitLossOutputs(outputs.unit_kl.new_zeros(()), outputs, weights, gradients).flat


def _set_up_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:], *inputs[:_NUM_TENSORS])
    ctx.options = inputs[_NUM_TENSORS:]
    remember_learned(ctx, inputs, _NUM_LEARNED)


def _differentiate_forward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    kept, tensors = saved[: _NUM_KEPT - 1], saved[_NUM_KEPT - 1 :]
    wanted = ctx.needs_input_grad[:_NUM_LEARNED]
    gradients = torch.ops.sod_kernels.linear_unit_kl_backward(
        grads[0].contiguous(), *kept, *wanted, *tensors, *ctx.options
    )
    return gradients_of_all(ctx, gradients)


def _set_up_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # The options end with it.
    keep_head_gradients(ctx, inputs, output, inputs[_NUM_BOTH - 1])


register(Op(_FORWARD, _run_forward, _fake_forward), _differentiate_forward, _set_up_forward)
register_gradient(Op(_BACKWARD, _run_backward, _fake_backward))
register(Op(_LOSS, _run_loss, _fake_loss), scale_gradients, _set_up_loss)

linear_unit_kl_forward = torch.ops.sod_kernels.linear_unit_kl_forward
linear_unit_kl_loss = torch.ops.sod_kernels.linear_unit_kl_loss
