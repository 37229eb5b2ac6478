"""The textbook formulas with autograd: the truth in float64, the yardstick in the dtype under test.

Written apart from `sod_kernels.reference`, so that agreement between the two means something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sod_kernels.testing.cases import StepKLCase
from sod_kernels.types import DivergenceSpec


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Outputs and gradient of the textbook formulas.

    Attributes:
        token_kl: (B, T), 0 at rows in no step.
        token_reference_kl: (B, T), zeros without a reference.
        student_log_probs: (B, T), zeros without sampled ids.
        teacher_log_probs: (B, T), zeros without sampled ids.
        student_entropy: (B, T).
        row_state: (B, T, 7), see `RowState`; AUX is meaningful where token_kl is finite.
        grad_student_logits: (B, T, V) gradient for the case's upstream gradients.
    """

    token_kl: Tensor
    token_reference_kl: Tensor
    student_log_probs: Tensor
    teacher_log_probs: Tensor
    student_entropy: Tensor
    row_state: Tensor
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
    """Divergence per row (safe to differentiate, +inf rows left finite) and AUX of the row state."""
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


def _second_target(case: StepKLCase, log_p: Tensor, log_r: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || reference) per row, as `_divergence` gives it, and the rows where it is +inf."""
    spec = replace(case.spec, divergence="reverse_kl")
    return _divergence(log_p, log_r, spec)[0], _infinite_rows(log_p.detach(), log_r, spec)


def _evaluate(case: StepKLCase, dtype: torch.dtype) -> Truth:
    spec = case.spec
    active = case.step_ids >= 0
    student = case.student_logits.detach().to(dtype, copy=True).contiguous().requires_grad_()

    def scaled(logits: Tensor) -> Tensor:
        # Rows in no step may hold anything; zeros in their place keep autograd free of their NaNs.
        valid = logits[..., : spec.vocab_size].to(dtype)
        return torch.where(active[..., None], valid, 0.0) / spec.temperature

    s, t = scaled(student), scaled(case.teacher_logits.detach())
    log_p, log_q = s.log_softmax(-1), t.log_softmax(-1)
    value, aux = _divergence(log_p, log_q, spec)
    infinite = _infinite_rows(log_p.detach(), log_q, spec) & ~value.isnan()
    entropy = -_expectation(log_p, _finite_or_zero(log_p))
    zeros = torch.zeros_like(entropy)
    log_prob = teacher_log_prob = reference_lse = reference_value = zeros
    reference_infinite = torch.zeros_like(infinite)
    if case.sampled_ids is not None:
        chosen = torch.where(active, case.sampled_ids, 0)[..., None]
        log_prob = log_p.gather(-1, chosen).squeeze(-1)
        teacher_log_prob = _floored(log_q.gather(-1, chosen).squeeze(-1), spec.min_log_prob)
    if case.reference_logits is not None:
        r = scaled(case.reference_logits.detach())
        reference_lse = r.logsumexp(-1)
        reference_value, reference_infinite = _second_target(case, log_p, r.log_softmax(-1))
        reference_infinite = reference_infinite & ~reference_value.isnan()
    terms = zip(
        case.upstream,
        (
            torch.where(infinite, 0.0, value),
            torch.where(reference_infinite, 0.0, reference_value),
            log_prob,
            entropy,
        ),
        strict=True,
    )
    objective = torch.zeros((), dtype=dtype, device=student.device)
    for weight, output in terms:
        if output.requires_grad:
            objective = objective + torch.where(active, weight.to(dtype) * output, 0.0).sum()
    (grad,) = torch.autograd.grad(objective, student)

    def tidy(output: Tensor) -> Tensor:
        return torch.where(active, output.detach(), 0.0)

    divergence = torch.where(infinite, torch.inf, value)
    reference_kl = torch.where(reference_infinite, torch.inf, reference_value)
    state = (s.logsumexp(-1), entropy, t.logsumexp(-1), divergence, aux, reference_lse, reference_kl)
    return Truth(
        token_kl=tidy(divergence.clamp(min=0)),
        token_reference_kl=tidy(reference_kl.clamp(min=0)),
        student_log_probs=tidy(log_prob),
        teacher_log_probs=tidy(teacher_log_prob),
        student_entropy=tidy(entropy),
        row_state=torch.stack([tidy(each) for each in state], -1),
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
