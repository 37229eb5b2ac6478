"""The custom ops from hidden states that torch sees: a single sweep, and the two of the two-sweep mode.

Each hides its walk over chunks: a compiled graph holds one node per sweep and no tensor of rows by columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels._kept_gradients import gradients_of_all, keep_gradients, remember_learned, scale_gradients
from sod_kernels._op_registry import Op, register, register_gradient
from sod_kernels.linear.double import run_backward, run_forward
from sod_kernels.linear.heads import Wanted
from sod_kernels.linear.inputs import LinearInputs, LinearOptions, Objective
from sod_kernels.linear.single import SingleSweepResult, run_single_sweep
from sod_kernels.types import TokenGradients, TokenStats

_INPUTS = (
    "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, "
    "Tensor? teacher_hidden, Tensor? teacher_weight, Tensor? teacher_bias, "
    "Tensor? reference_hidden, Tensor? reference_weight, Tensor? reference_bias, "
    "Tensor step_ids, Tensor? sampled_ids, "
    "Tensor? teacher_log_probs, Tensor? teacher_ids, Tensor? teacher_tail"
)
_OPTIONS = (
    "SymInt num_steps, float student_scale, float teacher_scale, float reference_scale, "
    "float? student_softcap, float? teacher_softcap, float? reference_softcap, "
    "str divergence, float beta, float temperature, SymInt vocab_size, float? min_log_prob, "
    "SymInt chunk_size, str backend, str? tail, str? group, SymInt first_column, SymInt total_columns, "
    "str function"
)
_OBJECTIVE = (
    "Tensor step_trajectory, Tensor? step_weights, Tensor? token_weights, Tensor? denominator, "
    "Tensor? advantages, Tensor? old_log_probs, int weighting, float? delta, float? epsilon, "
    "float clip_low, float clip_high, float? dual_clip, float kl_coefficient, float entropy_coefficient, "
    "str step_divergence, str reduction"
)
_WANTED = "bool wants_hidden, bool wants_weight, bool wants_bias"
_TOKENS = (
    "Tensor token_kl, Tensor token_reference_kl, Tensor student_log_probs, Tensor teacher_log_probs, "
    "Tensor student_entropy"
)
_GRADIENTS = "Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias"
_FORWARD = f"linear_step_kl_forward({_INPUTS}, {_OPTIONS}) -> ({_TOKENS}, Tensor row_state, Tensor step_sums)"
_BACKWARD = (
    "linear_step_kl_backward(Tensor grad_token_kl, Tensor grad_token_reference_kl, "
    f"Tensor grad_student_log_probs, Tensor grad_student_entropy, Tensor row_state, {_WANTED}, {_INPUTS}, "
    f"{_OPTIONS}) -> ({_GRADIENTS})"
)
_LOSS = (
    f"linear_step_kl_loss({_INPUTS}, {_OPTIONS}, {_OBJECTIVE}, {_WANTED}) -> (Tensor loss, {_TOKENS}, "
    f"Tensor step_sums, Tensor step_weights, {_GRADIENTS})"
)
_NUM_INPUTS, _NUM_OPTIONS = len(LinearInputs._fields), len(LinearOptions._fields)
_NUM_BOTH = _NUM_INPUTS + _NUM_OPTIONS
# Hidden states, weight and bias of the student come first.
_NUM_LEARNED = len(Wanted._fields)
# What the backward op takes before them: upstream gradients, the row state, and what is wanted.
_NUM_GIVEN = len(TokenGradients._fields) + 1 + _NUM_LEARNED


def _split(arguments: tuple[Any, ...]) -> tuple[LinearInputs, LinearOptions, tuple[Any, ...]]:
    inputs = LinearInputs(*arguments[:_NUM_INPUTS])
    return inputs, LinearOptions(*arguments[_NUM_INPUTS:_NUM_BOTH]), arguments[_NUM_BOTH:]


def _new_tokens(inputs: LinearInputs, options: LinearOptions) -> TokenStats:
    """Fresh tensors of the shapes, dtypes and device of the token outputs."""
    like, num_rows = inputs.student_hidden, inputs.step_ids.shape[0]

    def tokens(is_given: bool = True) -> Tensor:
        return like.new_empty((num_rows if is_given else 0,), dtype=inputs.dtype)

    has_sampled = inputs.sampled_ids is not None
    return TokenStats(
        token_kl=tokens(),
        token_reference_kl=tokens(inputs.reference_hidden is not None),
        student_log_probs=tokens(has_sampled),
        teacher_log_probs=tokens(has_sampled),
        student_entropy=tokens(),
        row_state=like.new_empty((num_rows, inputs.state_width), dtype=torch.float64),
        step_sums=like.new_empty((options.num_steps, 5), dtype=torch.float64),
    )


def _new_gradients(inputs: LinearInputs, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    def gradient(like: Tensor | None, is_wanted: bool) -> Tensor:
        shape = like.shape if like is not None and is_wanted else (0,)
        return inputs.student_hidden.new_empty(shape, dtype=inputs.dtype)

    hidden, weight, bias = (
        gradient(like, is_wanted) for like, is_wanted in zip(inputs[:_NUM_LEARNED], wanted, strict=True)
    )
    return hidden, weight, bias


def _run_forward(*arguments: Any) -> TokenStats:
    inputs, options, _ = _split(arguments)
    return run_forward(inputs, options)


def _fake_forward(*arguments: Any) -> TokenStats:
    inputs, options, _ = _split(arguments)
    return _new_tokens(inputs, options)


def _run_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    upstream, (row_state, *wanted) = TokenGradients(*arguments[:4]), arguments[4:_NUM_GIVEN]
    inputs, options, _ = _split(arguments[_NUM_GIVEN:])
    return run_backward(upstream, inputs, options, row_state, Wanted(*wanted))


def _fake_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, _, _ = _split(arguments[_NUM_GIVEN:])
    return _new_gradients(inputs, Wanted(*arguments[5:_NUM_GIVEN]))


def _split_loss(arguments: tuple[Any, ...]) -> tuple[LinearInputs, LinearOptions, Objective, Wanted]:
    inputs, options, others = _split(arguments)
    return inputs, options, Objective(*others[:-_NUM_LEARNED]), Wanted(*others[-_NUM_LEARNED:])


def _run_loss(*arguments: Any) -> SingleSweepResult:
    return run_single_sweep(*_split_loss(arguments))


def _fake_loss(*arguments: Any) -> SingleSweepResult:
    inputs, options, _, wanted = _split_loss(arguments)
    stats = _new_tokens(inputs, options)
    return SingleSweepResult(
        stats.token_kl.new_empty(()),
        *stats[:5],
        stats.step_sums,
        stats.token_kl.new_empty((options.num_steps,)),
        *_new_gradients(inputs, wanted),
    )


def _set_up_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    stats = TokenStats(*output)
    ctx.mark_non_differentiable(stats.teacher_log_probs, stats.row_state, stats.step_sums)
    ctx.save_for_backward(*inputs[:_NUM_INPUTS], stats.row_state)
    ctx.options = inputs[_NUM_INPUTS:]
    remember_learned(ctx, inputs, _NUM_LEARNED)


def _differentiate_forward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    of_output = TokenStats(*grads)
    upstream = (getattr(of_output, name).contiguous() for name in TokenGradients._fields)
    *inputs, row_state = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:_NUM_LEARNED]
    gradients = torch.ops.sod_kernels.linear_step_kl_backward(
        *upstream, row_state, *wanted, *inputs, *ctx.options
    )
    return gradients_of_all(ctx, gradients)


def _set_up_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # The options end with it.
    keep_head_gradients(ctx, inputs, output, inputs[_NUM_BOTH - 1])


def keep_head_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], function: str) -> None:
    """Keep the gradients of the student's head that a single sweep has made.

    Args:
        ctx: Of autograd.
        inputs: Arguments of the op; hidden states, weight and bias of the student come first.
        output: Loss first; gradients of those three last.
        function: Name for messages.
    """
    learned = next((each for each in inputs[:_NUM_LEARNED] if each is not None and each.requires_grad), None)
    keep_gradients(ctx, inputs, output, num_learned=_NUM_LEARNED, learned=learned, function=function)


register(Op(_FORWARD, _run_forward, _fake_forward), _differentiate_forward, _set_up_forward)
register_gradient(Op(_BACKWARD, _run_backward, _fake_backward))
register(Op(_LOSS, _run_loss, _fake_loss), scale_gradients, _set_up_loss)

linear_step_kl_forward = torch.ops.sod_kernels.linear_step_kl_forward
linear_step_kl_loss = torch.ops.sod_kernels.linear_step_kl_loss
