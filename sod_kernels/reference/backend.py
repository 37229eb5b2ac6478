"""Plain torch, always in float64 inside: the definition that the fast backends are held against.

Walks the logits in blocks of rows, so that its float64 temporaries stay at a few tens of megabytes however
many tokens there are. Gradients are written out by hand; autograd checks them in the tests.

Notation: s, t are the student's and teacher's logits over temperature, p and q their softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels.segments import segment_sums
from sod_kernels.types import DivergenceSpec, TokenStats

_BLOCK_ENTRIES = 1 << 20


class _Rows(NamedTuple):
    """Log-softmax of a block of rows, (b, t, vocab_size) float64."""

    log_p: Tensor
    log_q: Tensor


def availability(device_type: str) -> str | None:
    """Say why this backend cannot run on a kind of device.

    Args:
        device_type: Such as "cpu" or "cuda".

    Returns:
        None if it can run there, otherwise the reason as a sentence.
    """
    if device_type in ("cpu", "cuda", "xpu"):
        return None
    return f"The reference computes in float64, which it is not known to have on {device_type!r} devices."


def _blocks(shape: tuple[int, int], vocab_size: int) -> Iterator[tuple[slice, slice]]:
    """Cut (B, T) into blocks of about `_BLOCK_ENTRIES` logits; merging B and T instead could copy."""
    num_rows, num_tokens = shape
    budget = max(1, _BLOCK_ENTRIES // vocab_size)
    tokens = max(1, min(num_tokens, budget))
    rows = max(1, budget // tokens)
    for row in range(0, num_rows, rows):
        for token in range(0, num_tokens, tokens):
            yield slice(row, row + rows), slice(token, token + tokens)


def _mean(log_weights: Tensor, values: Tensor) -> Tensor:
    """E of `values` under exp(log_weights); a weight of exactly 0 contributes 0 whatever the value."""
    return torch.where(log_weights == -torch.inf, 0.0, log_weights.exp() * values).sum(-1)


def _scaled(logits: Tensor, spec: DivergenceSpec) -> Tensor:
    return logits[..., : spec.vocab_size].double() / spec.temperature


def _floored(log_probs: Tensor, spec: DivergenceSpec) -> Tensor:
    return log_probs if spec.min_log_prob is None else log_probs.clamp(min=spec.min_log_prob)


def _above_floor(log_p: Tensor, spec: DivergenceSpec) -> Tensor:
    floor = spec.min_log_prob
    return torch.ones_like(log_p) if floor is None else (log_p > floor).to(log_p.dtype)


def _log_mixture(rows: _Rows, beta: float) -> Tensor:
    return torch.logaddexp(rows.log_p + math.log1p(-beta), rows.log_q + math.log(beta))


def _student_score(rows: _Rows, spec: DivergenceSpec) -> Tensor:
    """The f of dKL/ds = p (f - E_p f), for the two divergences that average under the student."""
    if spec.divergence == "jsd":
        return (1.0 - spec.beta) * (rows.log_p - _log_mixture(rows, spec.beta))
    return rows.log_p - _floored(rows.log_q, spec)


def _divergence(rows: _Rows, spec: DivergenceSpec) -> tuple[Tensor, Tensor]:
    """Value per row, not clamped, and what the backward sweep keeps of it."""
    if spec.divergence == "forward_kl":
        value = _mean(rows.log_q, rows.log_q - _floored(rows.log_p, spec))
        return value, _mean(rows.log_q, _above_floor(rows.log_p, spec))
    aux = _mean(rows.log_p, _student_score(rows, spec))
    if spec.divergence == "reverse_kl":
        return aux, aux
    teacher_part = _mean(rows.log_q, rows.log_q - _log_mixture(rows, spec.beta))
    return spec.beta * teacher_part + aux, aux


def forward(
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    num_steps: int,
    spec: DivergenceSpec,
) -> TokenStats:
    """Compute every token statistic and their sums per step.

    Args:
        student_logits: (B, T, >= vocab_size), any floating dtype.
        teacher_logits: (B, T, >= vocab_size), same dtype.
        step_ids: (B, T) int64, -1 in no step.
        sampled_ids: (B, T) int64, read at rows in a step only, or None.
        num_steps: Number of steps S.
        spec: What to compute.

    Returns:
        Token tensors in float32 (float64 for float64 logits) and the (S, 5) float64 sums.
    """
    is_double = student_logits.dtype == torch.float64
    exact = torch.zeros(7, *step_ids.shape, dtype=torch.float64, device=step_ids.device)
    for block in _blocks((step_ids.shape[0], step_ids.shape[1]), spec.vocab_size):
        s, t = _scaled(student_logits[block], spec), _scaled(teacher_logits[block], spec)
        rows = _Rows(s.log_softmax(-1), t.log_softmax(-1))
        value, aux = _divergence(rows, spec)
        entropy = -_mean(rows.log_p, rows.log_p)
        is_active = step_ids[block] >= 0
        log_prob = teacher_log_prob = torch.zeros_like(value)
        if sampled_ids is not None:
            # An id at a row in no step may be anything, so a harmless column stands in for it.
            column = torch.where(is_active, sampled_ids[block], 0)[..., None]
            log_prob = rows.log_p.gather(-1, column).squeeze(-1)
            teacher_log_prob = _floored(rows.log_q.gather(-1, column).squeeze(-1), spec)
        lse = (s.logsumexp(-1), t.logsumexp(-1))
        outputs = (value.clamp(min=0.0), log_prob, teacher_log_prob, entropy, *lse, aux)
        exact[(slice(None), *block)] = torch.where(is_active, torch.stack(outputs), 0.0)
    tokens = exact if is_double else exact.float()
    sums = _step_sums(tokens, step_ids, sampled_ids is not None, num_steps)
    token_kl, log_probs, teacher_log_probs, *rest = (token.clone() for token in tokens)
    if sampled_ids is None:
        log_probs, teacher_log_probs = token_kl.new_empty(0), token_kl.new_empty(0)
    entropy, student_lse, teacher_lse, kl_aux = rest
    return TokenStats(token_kl, log_probs, teacher_log_probs, entropy, student_lse, teacher_lse, kl_aux, sums)


def _step_sums(tokens: Tensor, step_ids: Tensor, has_sampled: bool, num_steps: int) -> Tensor:
    token_kl, log_probs, teacher_log_probs, entropy = tokens[:4]
    zeros = torch.zeros_like(token_kl)
    gap = (log_probs - teacher_log_probs).abs() if has_sampled else zeros
    columns = (torch.ones_like(token_kl), token_kl, gap, -log_probs, entropy)
    ids = step_ids.flatten()
    return torch.stack([segment_sums(column.flatten(), ids, num_steps) for column in columns], dim=-1)


def backward(
    grad_token_kl: Tensor,
    grad_student_log_probs: Tensor,
    grad_student_entropy: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    step_ids: Tensor,
    sampled_ids: Tensor | None,
    student_lse: Tensor,
    teacher_lse: Tensor,
    kl_aux: Tensor,
    student_entropy: Tensor,
    spec: DivergenceSpec,
) -> Tensor:
    """Compute the gradient of the student's logits for any upstream gradient of the three outputs.

    Args:
        grad_token_kl: (B, T) upstream gradient.
        grad_student_log_probs: (B, T), or (0,) without sampled ids.
        grad_student_entropy: (B, T).
        student_logits: As in `forward`.
        teacher_logits: As in `forward`.
        step_ids: As in `forward`.
        sampled_ids: As in `forward`.
        student_lse: Not read: the truth is recomputed in float64 rather than from rounded values.
        teacher_lse: Not read, for the same reason.
        kl_aux: Not read, for the same reason.
        student_entropy: Not read, for the same reason.
        spec: As in `forward`.

    Returns:
        Fresh contiguous gradient of `student_logits`' shape and dtype.
    """
    grad = torch.zeros(student_logits.shape, dtype=student_logits.dtype, device=student_logits.device)
    for block in _blocks((step_ids.shape[0], step_ids.shape[1]), spec.vocab_size):
        s, t = _scaled(student_logits[block], spec), _scaled(teacher_logits[block], spec)
        rows = _Rows(s.log_softmax(-1), t.log_softmax(-1))
        is_active = (step_ids[block] >= 0)[..., None]
        total = _kl_gradient(rows, spec) * grad_token_kl[block].double()[..., None]
        total = total + _entropy_gradient(rows) * grad_student_entropy[block].double()[..., None]
        if sampled_ids is not None:
            column = torch.where(is_active, sampled_ids[block][..., None], 0)
            weight = grad_student_log_probs[block].double()[..., None]
            total = (total - weight * rows.log_p.exp()).scatter_add(-1, column, weight)
        total = torch.where(is_active, total / spec.temperature, 0.0)
        grad[(*block, slice(0, spec.vocab_size))] = total.to(grad.dtype)
    return grad


def _kl_gradient(rows: _Rows, spec: DivergenceSpec) -> Tensor:
    """Gradient of the divergence with respect to s; 0 all over a row whose divergence is +inf."""
    value, aux = _divergence(rows, spec)
    p = rows.log_p.exp()
    if spec.divergence == "forward_kl":
        gradient = aux[..., None] * p - rows.log_q.exp() * _above_floor(rows.log_p, spec)
    else:
        score = _student_score(rows, spec) - aux[..., None]
        gradient = torch.where(rows.log_p == -torch.inf, 0.0, p * score)
    return torch.where(value[..., None] == torch.inf, 0.0, gradient)


def _entropy_gradient(rows: _Rows) -> Tensor:
    """Gradient of H = -sum p log p with respect to s: -p (log p + H)."""
    entropy = -_mean(rows.log_p, rows.log_p)[..., None]
    return torch.where(rows.log_p == -torch.inf, 0.0, -rows.log_p.exp() * (rows.log_p + entropy))
