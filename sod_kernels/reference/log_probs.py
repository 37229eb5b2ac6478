"""Log-probabilities of chosen ids and entropy of the student alone: the definition, in float64 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels.reference.rows import blocks, mean
from sod_kernels.types import LogProbGradients, LogProbInputs, LogProbStats


def _log_softmax(inputs: LogProbInputs, block: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
    """(b, t, vocab_size) log-probabilities and (b, t) log-sum-exp, float64."""
    scaled = inputs.student_logits[block][..., : inputs.vocab_size].double() / inputs.temperature
    return scaled.log_softmax(-1), scaled.logsumexp(-1)


def _columns(inputs: LogProbInputs, block: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
    """(b, t, K) column of each id, a harmless one where it is absent, and whether it is there."""
    ids = inputs.ids[block]
    is_there = (ids >= 0) & (inputs.step_ids[block] >= 0)[..., None]
    return torch.where(is_there, ids, 0), is_there


def log_probs_forward(inputs: LogProbInputs) -> LogProbStats:
    """Compute the log-probabilities of K ids per row and the entropy.

    Args:
        inputs: Logits, step ids and the ids to look up.

    Returns:
        Log-probabilities and entropy in float32 (float64 for float64 logits), and the row state.
    """
    step_ids, ids = inputs.step_ids, inputs.ids
    log_probs = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    row_state = torch.zeros((*step_ids.shape, 2), dtype=torch.float64, device=ids.device)
    for block in blocks((step_ids.shape[0], step_ids.shape[1]), inputs.vocab_size):
        log_p, lse = _log_softmax(inputs, block)
        column, is_there = _columns(inputs, block)
        log_probs[block] = torch.where(is_there, log_p.gather(-1, column), 0.0)
        state = torch.stack((lse, -mean(log_p, log_p)), dim=-1)
        row_state[block] = torch.where((step_ids[block] >= 0)[..., None], state, 0.0)
    dtype = torch.promote_types(inputs.student_logits.dtype, torch.float32)
    return LogProbStats(log_probs.to(dtype), row_state[..., 1].to(dtype, copy=True), row_state)


def log_probs_backward(
    upstream: LogProbGradients, inputs: LogProbInputs, row_state: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Compute the gradient of the student's logits for any upstream gradient of the outputs.

    Args:
        upstream: Gradients of the log-probabilities and the entropy.
        inputs: As in the forward sweep.
        row_state: Not read: the truth is computed anew.
        out: Takes the gradient; may be the student's logits. None for a fresh tensor.

    Returns:
        Contiguous gradient of `student_logits`' shape and dtype.
    """
    student, step_ids = inputs.student_logits, inputs.step_ids
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device) if out is None else out
    for block in blocks((step_ids.shape[0], step_ids.shape[1]), inputs.vocab_size):
        log_p, _ = _log_softmax(inputs, block)
        column, is_there = _columns(inputs, block)
        weight = torch.where(is_there, upstream.log_probs[block].double(), 0.0)
        entropy = -mean(log_p, log_p)[..., None]
        score = weight.sum(-1, keepdim=True) + upstream.student_entropy[block].double()[..., None] * (
            log_p + entropy
        )
        total = torch.where(log_p == -torch.inf, 0.0, -log_p.exp() * score).scatter_add(-1, column, weight)
        total = torch.where((step_ids[block] >= 0)[..., None], total / inputs.temperature, 0.0)
        grad[(*block, slice(0, inputs.vocab_size))] = total.to(grad.dtype)
    grad[..., inputs.vocab_size :] = 0
    return grad
