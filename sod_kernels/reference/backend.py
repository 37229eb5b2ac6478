"""Plain torch, always in float64 inside: the definition that the fast backends are held against.

Walks the logits in blocks of rows, so that its float64 temporaries stay at a few tens of megabytes however
many tokens there are. Gradients are written out by hand; autograd checks them in the tests.

Notation: s, t are the student's and teacher's logits over temperature, p and q their softmax.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels._two_sweeps import in_two_sweeps
from sod_kernels.reference import units
from sod_kernels.reference.log_probs import log_probs_backward, log_probs_forward
from sod_kernels.reference.rows import blocks, mean
from sod_kernels.segments import step_sums
from sod_kernels.types import DivergenceSpec, RowState, TokenGradients, TokenInputs, TokenStats
from sod_kernels.unit_types import UnitGradients, UnitInputs, UnitStats

__all__ = [
    "availability",
    "backward",
    "forward",
    "forward_backward",
    "log_probs_backward",
    "log_probs_forward",
    "unit_backward",
    "unit_forward",
]


class _Rows(NamedTuple):
    """Log-softmax of a block of rows, (b, t, vocab_size) float64; log_r is the reference's."""

    log_p: Tensor
    log_q: Tensor
    log_r: Tensor | None


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
        value = mean(rows.log_q, rows.log_q - _floored(rows.log_p, spec))
        return value, mean(rows.log_q, _above_floor(rows.log_p, spec))
    aux = mean(rows.log_p, _student_score(rows, spec))
    if spec.divergence == "reverse_kl":
        return aux, aux
    teacher_part = mean(rows.log_q, rows.log_q - _log_mixture(rows, spec.beta))
    return spec.beta * teacher_part + aux, aux


def _reference_score(log_p: Tensor, log_r: Tensor, spec: DivergenceSpec) -> Tensor:
    return log_p - _floored(log_r, spec)


class _Block(NamedTuple):
    """One block of rows, ready to be computed with."""

    rows: _Rows
    lses: tuple[Tensor, Tensor, Tensor | None]
    is_active: Tensor
    # An id at a row in no step may be anything, so a harmless column stands in for it.
    column: Tensor | None


def _read_block(
    inputs: TokenInputs, block: tuple[slice, slice], spec: DivergenceSpec, state: Tensor | None = None
) -> _Block:
    """Read a block; with a row state over the rows that it describes, of which the logits may be a shard."""
    reference = inputs.reference_logits
    s = _scaled(inputs.student_logits[block], spec)
    t = _scaled(inputs.teacher_logits[block], spec)
    r = None if reference is None else _scaled(reference[block], spec)
    lses = (s.logsumexp(-1), t.logsumexp(-1), None if r is None else r.logsumexp(-1))
    log_p, log_q, log_r = s.log_softmax(-1), t.log_softmax(-1), None if r is None else r.log_softmax(-1)
    if state is not None:
        log_p = _over_whole_row(log_p, s, lses[0], state[..., RowState.STUDENT_LSE])
        log_q = _over_whole_row(log_q, t, lses[1], state[..., RowState.TEACHER_LSE])
        if log_r is not None and r is not None and lses[2] is not None:
            log_r = _over_whole_row(log_r, r, lses[2], state[..., RowState.REFERENCE_LSE])
    is_active = inputs.step_ids[block] >= 0
    ids = inputs.sampled_ids
    column = None if ids is None else torch.where(is_active, ids[block], 0)[..., None]
    return _Block(_Rows(log_p, log_q, log_r), lses, is_active, column)


def _over_whole_row(log_probs: Tensor, scaled: Tensor, own_lse: Tensor, lse: Tensor) -> Tensor:
    """Log-probabilities of a shard's columns in the whole row; the very same where the shard is the row."""
    is_excluded = (scaled == -torch.inf) & (lse > -torch.inf)[..., None]
    return torch.where(is_excluded, -torch.inf, log_probs + (own_lse - lse)[..., None])


def forward(inputs: TokenInputs, num_steps: int, spec: DivergenceSpec) -> TokenStats:
    """Compute every token statistic and their sums per step.

    Args:
        inputs: Logits, step ids and sampled ids.
        num_steps: Number of steps S.
        spec: What to compute.

    Returns:
        Token tensors in float32 (float64 for float64 logits), the (B, T, 7) row state and the (S, 5) sums.
    """
    step_ids = inputs.step_ids
    shape = (step_ids.shape[0], step_ids.shape[1])
    exact = torch.zeros(2 + len(RowState), *shape, dtype=torch.float64, device=step_ids.device)
    for block in blocks(shape, spec.vocab_size):
        rows, (student_lse, teacher_lse, reference_lse), is_active, column = _read_block(inputs, block, spec)
        value, aux = _divergence(rows, spec)
        entropy = -mean(rows.log_p, rows.log_p)
        log_prob = teacher_log_prob = reference_kl = torch.zeros_like(value)
        if column is not None:
            log_prob = rows.log_p.gather(-1, column).squeeze(-1)
            teacher_log_prob = _floored(rows.log_q.gather(-1, column).squeeze(-1), spec)
        if rows.log_r is not None:
            reference_kl = mean(rows.log_p, _reference_score(rows.log_p, rows.log_r, spec))
        state = (
            student_lse,
            entropy,
            teacher_lse,
            value,
            aux,
            reference_kl if reference_lse is None else reference_lse,
            reference_kl,
        )
        outputs = torch.stack((log_prob, teacher_log_prob, *state))
        exact[(slice(None), *block)] = torch.where(is_active, outputs, 0.0)
    return _token_stats(exact, inputs, num_steps)


def sums_over_shard(inputs: TokenInputs, row_state: Tensor, spec: DivergenceSpec) -> Tensor:
    """Sum the terms of a divergence over the columns of a shard, with the normalisers of the whole rows.

    Args:
        inputs: Of the shard.
        row_state: (B, T, 7) of the whole rows; the log-sum-exps are read.
        spec: With the shard's number of valid columns; 0 for none.

    Returns:
        (B, T, 3) float64: this shard's part of the divergence, of `RowState.AUX` and of the reference KL;
        anything at rows in no step. The sum over all shards is the value.
    """
    step_ids = inputs.step_ids
    sums = torch.zeros((*step_ids.shape, 3), dtype=torch.float64, device=step_ids.device)
    if spec.vocab_size == 0:
        return sums
    for block in blocks((step_ids.shape[0], step_ids.shape[1]), spec.vocab_size):
        rows = _read_block(inputs, block, spec, row_state[block]).rows
        value, aux = _divergence(rows, spec)
        reference_kl = torch.zeros_like(value)
        if rows.log_r is not None:
            reference_kl = mean(rows.log_p, _reference_score(rows.log_p, rows.log_r, spec))
        sums[block] = torch.stack((value, aux, reference_kl), -1)
    return sums


def _token_stats(exact: Tensor, inputs: TokenInputs, num_steps: int) -> TokenStats:
    """Report (9, B, T) float64 values: both log-probs, then the row state."""
    dtype = torch.promote_types(inputs.student_logits.dtype, torch.float32)
    log_probs, teacher_log_probs, *state = (each.to(dtype, copy=True) for each in exact)
    token_kl = state[RowState.DIVERGENCE].clamp(min=0.0)
    reference_kl = state[RowState.REFERENCE_KL].clamp(min=0.0)
    entropy = state[RowState.STUDENT_ENTROPY]
    # A tensor each: outputs of a custom op must not share memory.
    no_reference, no_ids, no_teacher_ids = (token_kl.new_empty(0) for _ in range(3))
    has_sampled = inputs.sampled_ids is not None
    return TokenStats(
        token_kl=token_kl,
        token_reference_kl=no_reference if inputs.reference_logits is None else reference_kl,
        student_log_probs=log_probs if has_sampled else no_ids,
        teacher_log_probs=teacher_log_probs if has_sampled else no_teacher_ids,
        student_entropy=entropy,
        row_state=exact[2:].movedim(0, -1).contiguous(),
        step_sums=step_sums(
            token_kl,
            entropy,
            (log_probs, teacher_log_probs) if has_sampled else None,
            inputs.step_ids,
            num_steps,
        ),
    )


def backward(
    upstream: TokenGradients,
    inputs: TokenInputs,
    row_state: Tensor,
    spec: DivergenceSpec,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute the gradient of the student's logits for any upstream gradient of the outputs.

    Args:
        upstream: Gradients of the differentiable outputs.
        inputs: As in `forward`.
        row_state: Of the whole rows, of which the logits may be a shard.
        spec: As in `forward`.
        out: Takes the gradient; may be the student's logits. None for a fresh tensor.

    Returns:
        Contiguous gradient of `student_logits`' shape and dtype.
    """
    student = inputs.student_logits
    grad = torch.empty(student.shape, dtype=student.dtype, device=student.device) if out is None else out
    step_ids = inputs.step_ids
    for block in blocks((step_ids.shape[0], step_ids.shape[1]), spec.vocab_size):
        state = row_state[block]
        rows, _, is_active, column = _read_block(inputs, block, spec, state)

        def of_block(gradient: Tensor, block: tuple[slice, slice] = block) -> Tensor:
            return gradient[block].double()[..., None]

        total = _kl_gradient(rows, state, spec) * of_block(upstream.token_kl)
        total = total + _entropy_gradient(rows, state) * of_block(upstream.student_entropy)
        if rows.log_r is not None:
            score = _reference_score(rows.log_p, rows.log_r, spec)
            kl = state[..., RowState.REFERENCE_KL, None]
            total = total + _mean_gradient(rows.log_p, score, kl, kl) * of_block(upstream.token_reference_kl)
        if column is not None:
            weight = of_block(upstream.student_log_probs)
            here = torch.where(column >= 0, weight, 0.0)
            total = (total - weight * rows.log_p.exp()).scatter_add(-1, column.clamp(min=0), here)
        total = torch.where(is_active[..., None], total / spec.temperature, 0.0)
        grad[(*block, slice(0, spec.vocab_size))] = total.to(grad.dtype)
    grad[..., spec.vocab_size :] = 0
    return grad


forward_backward = in_two_sweeps(forward, backward)


def _mean_gradient(log_p: Tensor, score: Tensor, mean_score: Tensor, kl: Tensor) -> Tensor:
    """Gradient p (f - E_p f) of a KL with respect to s; 0 all over a row whose KL is +inf."""
    gradient = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (score - mean_score))
    return torch.where(kl == torch.inf, 0.0, gradient)


def _kl_gradient(rows: _Rows, state: Tensor, spec: DivergenceSpec) -> Tensor:
    """Gradient of the divergence with respect to s; 0 all over a row whose divergence is +inf."""
    value, aux = state[..., RowState.DIVERGENCE, None], state[..., RowState.AUX, None]
    if spec.divergence != "forward_kl":
        return _mean_gradient(rows.log_p, _student_score(rows, spec), aux, value)
    gradient = aux * rows.log_p.exp() - rows.log_q.exp() * _above_floor(rows.log_p, spec)
    return torch.where(value == torch.inf, 0.0, gradient)


def _entropy_gradient(rows: _Rows, state: Tensor) -> Tensor:
    """Gradient of H = -sum p log p with respect to s: -p (log p + H)."""
    entropy = state[..., RowState.STUDENT_ENTROPY, None]
    return torch.where(rows.log_p == -torch.inf, 0.0, -rows.log_p.exp() * (rows.log_p + entropy))


def unit_forward(inputs: UnitInputs, spec: DivergenceSpec) -> UnitStats:
    """Compute the divergence of every unit that is compared.

    Args:
        inputs: Logits, columns, rows and span scores.
        spec: What to compute; its vocabulary is that of the shared columns.

    Returns:
        The statistics, in float32 (float64 for float64 logits).
    """
    return units.unit_forward(inputs, spec, forward)


def unit_backward(
    upstream: UnitGradients, inputs: UnitInputs, unit_state: Tensor, spec: DivergenceSpec, vocab_size: int
) -> Tensor:
    """Compute the gradient of the student's logits from that of the units.

    Args:
        upstream: Gradients of the divergences, and the terms of the span columns.
        inputs: As in the forward sweep.
        unit_state: From the forward sweep.
        spec: As in the forward sweep.
        vocab_size: Valid columns of the student.

    Returns:
        Contiguous gradient of `student_logits`' shape and dtype.
    """
    return units.unit_backward(upstream, inputs, unit_state, spec, vocab_size, backward)
