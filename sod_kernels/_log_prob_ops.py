"""The custom ops over the log-prob sweeps: the student alone, one sweep forward and one back.

Built like the ops of `_autograd`: fake kernels, the backend as an argument, double backward refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels import _dispatch
from sod_kernels._op_registry import Op, register, register_gradient
from sod_kernels.types import LogProbGradients, LogProbInputs, LogProbStats

_INPUTS = "Tensor student_logits, Tensor step_ids, Tensor ids"
_OPTIONS = "float temperature, SymInt vocab_size, str backend, str function"
_FORWARD = (
    f"log_probs_forward({_INPUTS}, {_OPTIONS}) -> (Tensor log_probs, Tensor student_entropy, "
    "Tensor row_state)"
)
_BACKWARD = (
    f"log_probs_backward(Tensor grad_log_probs, Tensor grad_student_entropy, {_INPUTS}, Tensor row_state, "
    f"{_OPTIONS}) -> Tensor"
)


def log_probs_outputs(student_logits: Tensor, step_ids: Tensor, ids: Tensor) -> LogProbStats:
    """Make zeros of the shapes and dtypes that a backend returns.

    Args:
        student_logits: For the dtype.
        step_ids: For the leading shape.
        ids: For K.

    Returns:
        The zeros.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    return LogProbStats(
        log_probs=step_ids.new_zeros(ids.shape, dtype=dtype),
        student_entropy=step_ids.new_zeros(step_ids.shape, dtype=dtype),
        row_state=step_ids.new_zeros((*step_ids.shape, 2), dtype=torch.float64),
    )


def _run_forward(
    student_logits: Tensor,
    step_ids: Tensor,
    ids: Tensor,
    temperature: float,
    vocab_size: int,
    backend: str,
    function: str,
) -> LogProbStats:
    if step_ids.numel() == 0:
        return log_probs_outputs(student_logits, step_ids, ids)
    inputs = LogProbInputs(student_logits, step_ids, ids, temperature, vocab_size)
    return _dispatch.load(backend).log_probs_forward(inputs)


def _fake_forward(student_logits: Tensor, step_ids: Tensor, ids: Tensor, *_options: Any) -> LogProbStats:
    return log_probs_outputs(student_logits, step_ids, ids)


def _run_backward(
    grad_log_probs: Tensor,
    grad_student_entropy: Tensor,
    student_logits: Tensor,
    step_ids: Tensor,
    ids: Tensor,
    row_state: Tensor,
    temperature: float,
    vocab_size: int,
    backend: str,
    function: str,
) -> Tensor:
    if step_ids.numel() == 0:
        return student_logits.new_zeros(student_logits.shape)
    upstream = LogProbGradients(grad_log_probs, grad_student_entropy)
    inputs = LogProbInputs(student_logits, step_ids, ids, temperature, vocab_size)
    return _dispatch.load(backend).log_probs_backward(upstream, inputs, row_state)


def _fake_backward(_log_probs: Tensor, _entropy: Tensor, student_logits: Tensor, *_rest: Any) -> Tensor:
    return student_logits.new_empty(student_logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    stats = LogProbStats(*output)
    ctx.mark_non_differentiable(stats.row_state)
    ctx.save_for_backward(*inputs[:3], stats.row_state)
    ctx.options = inputs[3:]


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    of_output = LogProbStats(*grads)
    upstream = (of_output.log_probs.contiguous(), of_output.student_entropy.contiguous())
    grad = torch.ops.sod_kernels.log_probs_backward(*upstream, *ctx.saved_tensors, *ctx.options)
    return (grad, *(None,) * (2 + len(ctx.options)))


register(Op(_FORWARD, _run_forward, _fake_forward), _differentiate, _setup_context)
register_gradient(Op(_BACKWARD, _run_backward, _fake_backward))

log_probs_forward = torch.ops.sod_kernels.log_probs_forward
log_probs_backward = torch.ops.sod_kernels.log_probs_backward
