"""From what the sweeps give to what the caller gets; shared by every function of the family."""

from __future__ import annotations

from torch import Tensor

from sod_kernels._layout import StepLayout
from sod_kernels._reduction import reduce_loss, reference_weights, step_weights
from sod_kernels.functional.options import Options
from sod_kernels.types import StepKLOutput, StepStatistics, TokenStats


def finish(
    stats: TokenStats,
    layout: StepLayout,
    options: Options,
    *,
    has_sampled: bool,
    has_reference: bool,
    backend: str,
) -> StepKLOutput:
    """Weigh, reduce and name.

    Args:
        stats: Of a forward sweep, in the caller's leading shape.
        layout: Which token is in which step.
        options: As the caller chose.
        has_sampled: Whether sampled ids were given.
        has_reference: Whether a reference was given.
        backend: That ran.

    Returns:
        The output.
    """
    statistics = step_statistics(stats, layout.trajectory, options.step_divergence, has_sampled=has_sampled)
    weights = step_weights(options.function, options.weighting, statistics)
    terms = [(stats.token_kl, weights)]
    if has_reference:
        terms.append((stats.token_reference_kl, reference_weights(weights)))
    loss = reduce_loss(
        terms,
        layout.step_ids,
        statistics,
        token_weights=options.token_weights,
        reduction=options.reduction,
        denominator=options.denominator,
    )
    return make_output(
        loss, stats, statistics, weights, backend, has_sampled=has_sampled, has_reference=has_reference
    )


def step_statistics(
    stats: TokenStats, trajectory: Tensor, step_divergence: str, *, has_sampled: bool
) -> StepStatistics:
    """Average the sums of each step.

    Args:
        stats: Of a forward sweep.
        trajectory: (S,) trajectory of each step.
        step_divergence: "kl" or "abs_log_ratio".
        has_sampled: Whether sampled ids were given; else the entropy is the uncertainty.

    Returns:
        Statistics in the dtype of the token outputs.
    """
    count, kl, gap, nll, entropy = stats.step_sums.unbind(-1)
    per_step = count.clamp(min=1.0)
    dtype = stats.token_kl.dtype
    return StepStatistics(
        divergence=((kl if step_divergence == "kl" else gap) / per_step).to(dtype),
        uncertainty=((nll if has_sampled else entropy) / per_step).to(dtype),
        entropy=(entropy / per_step).to(dtype),
        tokens=count.long(),
        trajectory=trajectory,
    )


def make_output(
    loss: Tensor,
    stats: TokenStats,
    statistics: StepStatistics,
    weights: Tensor,
    backend: str,
    *,
    has_sampled: bool,
    has_reference: bool,
) -> StepKLOutput:
    """Name everything; what an input that was not given would have made is None.

    Args:
        loss: Scalar or per token.
        stats: Of a forward sweep, in the caller's leading shape.
        statistics: Of the steps.
        weights: (S,) that were applied.
        backend: That ran.
        has_sampled: Whether sampled ids were given.
        has_reference: Whether a reference was given.

    Returns:
        The output.
    """
    return StepKLOutput(
        loss=loss,
        token_kl=stats.token_kl,
        token_reference_kl=stats.token_reference_kl if has_reference else None,
        student_entropy=stats.student_entropy,
        step_divergence=statistics.divergence,
        step_weights=weights,
        step_tokens=statistics.tokens,
        student_log_probs=stats.student_log_probs if has_sampled else None,
        teacher_log_probs=stats.teacher_log_probs if has_sampled else None,
        backend=backend,
    )
