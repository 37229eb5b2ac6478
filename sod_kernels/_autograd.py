"""The two custom ops that torch sees: one forward sweep, one backward sweep, whatever is built on top.

As torch.library ops with fake kernels they stay whole under torch.compile, export and CUDA-graph capture; the
backend is an argument, so a compiled graph shows which one it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._op_registry import Op, register, register_gradient
from sod_kernels.types import DivergenceSpec, RowState, TokenGradients, TokenInputs, TokenStats

OPTIONS = "str divergence, float beta, float temperature, SymInt vocab_size, float? min_log_prob, str backend"
INPUTS = (
    "Tensor student_logits, Tensor teacher_logits, Tensor? reference_logits, Tensor step_ids, "
    "Tensor? sampled_ids"
)
_FORWARD = (
    f"step_kl_forward({INPUTS}, SymInt num_steps, {OPTIONS}) -> (Tensor token_kl, "
    "Tensor token_reference_kl, Tensor student_log_probs, Tensor teacher_log_probs, Tensor student_entropy, "
    "Tensor row_state, Tensor step_sums)"
)
_BACKWARD = (
    "step_kl_backward(Tensor grad_token_kl, Tensor grad_token_reference_kl, Tensor grad_student_log_probs, "
    f"Tensor grad_student_entropy, {INPUTS}, Tensor row_state, {OPTIONS}) -> Tensor"
)
NUM_INPUTS = len(TokenInputs._fields)


def new_outputs(inputs: TokenInputs, num_steps: int) -> TokenStats:
    """Zeros of the shapes and dtypes that a backend returns."""
    step_ids = inputs.step_ids
    dtype = torch.promote_types(inputs.student_logits.dtype, torch.float32)

    def tokens(is_given: bool = True) -> Tensor:
        return step_ids.new_zeros(step_ids.shape if is_given else (0,), dtype=dtype)

    has_sampled = inputs.sampled_ids is not None
    return TokenStats(
        token_kl=tokens(),
        token_reference_kl=tokens(inputs.reference_logits is not None),
        student_log_probs=tokens(has_sampled),
        teacher_log_probs=tokens(has_sampled),
        student_entropy=tokens(),
        row_state=step_ids.new_zeros((*step_ids.shape, len(RowState)), dtype=torch.float64),
        step_sums=step_ids.new_zeros(num_steps, 5, dtype=torch.float64),
    )


def make_spec(options: Sequence[Any]) -> DivergenceSpec:
    """Name the options, which come in the order of the schema."""
    names = (field.name for field in fields(DivergenceSpec))
    return DivergenceSpec(**dict(zip(names, options, strict=True)))


def _run_forward(*arguments: Any) -> TokenStats:
    inputs = TokenInputs(*arguments[:NUM_INPUTS])
    num_steps, *options, backend = arguments[NUM_INPUTS:]
    if inputs.step_ids.numel() == 0 or num_steps == 0:
        return new_outputs(inputs, num_steps)
    return _dispatch.load(backend).forward(inputs, num_steps, make_spec(options))


def _fake_forward(*arguments: Any) -> TokenStats:
    return new_outputs(TokenInputs(*arguments[:NUM_INPUTS]), arguments[NUM_INPUTS])


def _run_backward(*arguments: Any) -> Tensor:
    upstream = TokenGradients(*arguments[:4])
    inputs = TokenInputs(*arguments[4 : 4 + NUM_INPUTS])
    row_state, *options, backend = arguments[4 + NUM_INPUTS :]
    if inputs.step_ids.numel() == 0:
        return inputs.student_logits.new_zeros(inputs.student_logits.shape)
    return _dispatch.load(backend).backward(upstream, inputs, row_state, make_spec(options))


def _fake_backward(*arguments: Any) -> Tensor:
    student_logits: Tensor = arguments[4]
    return student_logits.new_empty(student_logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    stats = TokenStats(*output)
    ctx.mark_non_differentiable(stats.teacher_log_probs, stats.row_state, stats.step_sums)
    ctx.save_for_backward(*inputs[:NUM_INPUTS], stats.row_state)
    ctx.options = inputs[NUM_INPUTS + 1 :]
    ctx.num_arguments = len(inputs)


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    of_output = TokenStats(*grads)
    upstream = (getattr(of_output, name).contiguous() for name in TokenGradients._fields)
    grad = torch.ops.sod_kernels.step_kl_backward(*upstream, *ctx.saved_tensors, *ctx.options)
    return (grad, *(None,) * (ctx.num_arguments - 1))


register(Op(_FORWARD, _run_forward, _fake_forward), _differentiate, _setup_context)
register_gradient(Op(_BACKWARD, _run_backward, _fake_backward), "step_kl")

step_kl_forward = torch.ops.sod_kernels.step_kl_forward
step_kl_backward = torch.ops.sod_kernels.step_kl_backward
