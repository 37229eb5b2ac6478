"""The textbook formulas with autograd: the truth in float64, the yardstick in the dtype under test.

Written apart from `sod_kernels.reference`, so that agreement between the two means something.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels.testing.cases import StepKLCase
from sod_kernels.types import DivergenceSpec


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Outputs and gradient of the textbook formulas.

    Attributes:
        token_kl: (B, T), 0 at rows in no step.
        student_log_probs: (B, T), zeros without sampled ids.
        teacher_log_probs: (B, T), zeros without sampled ids.
        student_entropy: (B, T).
        student_lse: (B, T).
        teacher_lse: (B, T).
        kl_aux: (B, T), meaningful where token_kl is finite.
        grad_student_logits: (B, T, V) gradient for the case's upstream gradients.
    """

    token_kl: Tensor
    student_log_probs: Tensor
    teacher_log_probs: Tensor
    student_entropy: Tensor
    student_lse: Tensor
    teacher_lse: Tensor
    kl_aux: Tensor
    grad_student_logits: Tensor


def _finite_or_zero(log_probs: Tensor) -> Tensor:
    return torch.where(log_probs == -torch.inf, 0.0, log_probs)


def _floored(log_probs: Tensor, floor: float | None) -> Tensor:
    return log_probs if floor is None else log_probs.clamp(min=floor)


def _expectation(log_weights: Tensor, values: Tensor) -> Tensor:
    """Mean of `values` under exp(log_weights), where a weight of exactly 0 wins over any value."""
    weights = log_weights.exp()
    return torch.where(log_weights == -torch.inf, 0.0, weights * values).sum(-1)


def _divergence(log_p: Tensor, log_q: Tensor, spec: DivergenceSpec) -> tuple[Tensor, Tensor]:
    """Divergence per row (safe to differentiate, +inf rows left finite) and kl_aux."""
    if spec.divergence == "reverse_kl":
        denominator = _finite_or_zero(_floored(log_q, spec.min_log_prob))
        value = _expectation(log_p, _finite_or_zero(log_p) - denominator)
        return value, value
    if spec.divergence == "forward_kl":
        denominator = _finite_or_zero(_floored(log_p, spec.min_log_prob))
        value = _expectation(log_q, _finite_or_zero(log_q) - denominator)
        above = torch.ones_like(log_p) if spec.min_log_prob is None else (log_p > spec.min_log_prob).to(log_p)
        return value, _expectation(log_q, above)
    beta = torch.tensor(spec.beta, dtype=log_p.dtype, device=log_p.device)
    neither = (log_p == -torch.inf) & (log_q == -torch.inf)
    # logaddexp of two -inf has a NaN gradient, so those columns get a harmless stand-in first.
    log_mixture = torch.logaddexp(
        torch.where(neither, 0.0, log_p) + torch.log1p(-beta), torch.where(neither, 0.0, log_q) + beta.log()
    )
    student_part = _expectation(log_p, _finite_or_zero(log_p) - log_mixture)
    teacher_part = _expectation(log_q, _finite_or_zero(log_q) - log_mixture)
    aux = (1 - beta) * student_part
    return beta * teacher_part + aux, aux


def _infinite_rows(log_p: Tensor, log_q: Tensor, spec: DivergenceSpec) -> Tensor:
    """Rows whose divergence is +inf: mass on a column that the other side excludes."""
    if spec.divergence == "jsd" or spec.min_log_prob is not None:
        return torch.zeros(log_p.shape[:-1], dtype=torch.bool, device=log_p.device)
    mass, other = (log_p, log_q) if spec.divergence == "reverse_kl" else (log_q, log_p)
    return ((mass > -torch.inf) & (other == -torch.inf)).any(-1)


def _evaluate(case: StepKLCase, dtype: torch.dtype) -> Truth:
    spec = case.spec
    active = case.step_ids >= 0
    student = case.student_logits.detach().to(dtype, copy=True).contiguous().requires_grad_()
    # Rows in no step may hold anything; zeros in their place keep autograd free of their NaNs.
    scaled = torch.where(active[..., None], student[..., : spec.vocab_size], 0.0) / spec.temperature
    teacher = case.teacher_logits.detach()[..., : spec.vocab_size].to(dtype)
    teacher = torch.where(active[..., None], teacher, 0.0) / spec.temperature
    log_p, log_q = scaled.log_softmax(-1), teacher.log_softmax(-1)
    value, aux = _divergence(log_p, log_q, spec)
    infinite = _infinite_rows(log_p.detach(), log_q, spec) & ~value.isnan()
    token_kl = torch.where(infinite, torch.inf, value)
    entropy = -_expectation(log_p, _finite_or_zero(log_p))
    log_prob, teacher_log_prob = torch.zeros_like(entropy), torch.zeros_like(entropy)
    if case.sampled_ids is not None:
        chosen = torch.where(active, case.sampled_ids, 0)[..., None]
        log_prob = log_p.gather(-1, chosen).squeeze(-1)
        teacher_log_prob = _floored(log_q.gather(-1, chosen).squeeze(-1), spec.min_log_prob)
    upstream = (case.grad_token_kl, case.grad_student_log_probs, case.grad_student_entropy)
    objective = torch.zeros((), dtype=dtype, device=student.device)
    for weight, output in zip(upstream, (torch.where(infinite, 0.0, value), log_prob, entropy), strict=True):
        if output.requires_grad:
            objective = objective + torch.where(active, weight.to(dtype) * output, 0.0).sum()
    (grad,) = torch.autograd.grad(objective, student)

    def tidy(output: Tensor) -> Tensor:
        return torch.where(active, output.detach(), 0.0)

    return Truth(
        token_kl=tidy(token_kl.clamp(min=0)),
        student_log_probs=tidy(log_prob),
        teacher_log_probs=tidy(teacher_log_prob),
        student_entropy=tidy(entropy),
        student_lse=tidy(scaled.logsumexp(-1)),
        teacher_lse=tidy(teacher.logsumexp(-1)),
        kl_aux=tidy(aux),
        grad_student_logits=grad,
    )


def truth(case: StepKLCase) -> Truth:
    """Evaluate the textbook formulas and their autograd gradient in float64.

    Args:
        case: The inputs, options and upstream gradients.

    Returns:
        Every output in float64.
    """
    return _evaluate(case, torch.float64)


def plain_torch(case: StepKLCase) -> Truth:
    """Evaluate the same formulas in the case's own dtype: what a user would write, the yardstick.

    Args:
        case: The inputs, options and upstream gradients.

    Returns:
        Every output in the dtype of the logits.
    """
    return _evaluate(case, case.student_logits.dtype)
