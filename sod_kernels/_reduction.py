"""From a divergence per token to a loss: step weights, token weights, reduction.

With ell_n = step weight * token weight * divergence of token n (exactly 0 in no step, and where a weight is
0), where a second target adds a term of its own with the complementary step weight:

- "none": ell_n.
- "sum": sum_n ell_n.
- "token_mean": sum_n ell_n / (number of tokens in steps).
- "step_mean": sum_k (mean over the tokens of step k of ell_n) / (number of steps with tokens).
- "sequence_mean": sum_i (mean over the tokens in steps of trajectory i of ell_n) / (trajectories with
  tokens).

Counts are of tokens, steps and trajectories, never of weights. `denominator` takes the place of the divisor
on the right. Without any token the loss is 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sod_kernels._checks import weightings
from sod_kernels.segments import dense_ids
from sod_kernels.types import StepStatistics


def step_weights(
    function: str,
    weighting: Tensor | Callable[[StepStatistics], Tensor] | None,
    statistics: StepStatistics,
) -> Tensor:
    """Get the weight of each step.

    Args:
        function: Name for messages.
        weighting: None for weight 1 (0 for steps without tokens), the weights, or a function of the
            statistics.
        statistics: Of the steps.

    Returns:
        (S,) detached weights in the dtype of the statistics.

    Raises:
        TypeError: If the weights are no floating tensor.
        ValueError: If they have another shape or device.
    """
    like = statistics.divergence
    if weighting is None:
        return (statistics.tokens > 0).to(like.dtype)
    if isinstance(weighting, Tensor):
        weights = weighting
    else:
        with torch.no_grad():
            weights = weighting(statistics)
    weightings.check_step_weights(function, weights, like)
    return weights.detach().to(like.dtype)


def counted_statistics(tokens: Tensor, trajectory: Tensor, dtype: torch.dtype) -> StepStatistics:
    """Say what is known of steps before a sweep: enough for `divisors` and for weights that are given.

    Args:
        tokens: (S,) integer tokens of each step.
        trajectory: (S,) trajectory of each step.
        dtype: Of the statistics.

    Returns:
        Counts, and 0 for everything that is measured.
    """
    nothing = tokens.new_zeros(tokens.shape, dtype=dtype)
    return StepStatistics(
        divergence=nothing, uncertainty=nothing, entropy=nothing, tokens=tokens, trajectory=trajectory
    )


def reference_weights(weights: Tensor) -> Tensor:
    """Get the weight of the second target where `weights` is that of the first.

    Args:
        weights: (S,) step weights.

    Returns:
        (S,) of max(0, 1 - weight).
    """
    return (1.0 - weights).clamp(min=0.0)


def reduce_loss(
    terms: Iterable[tuple[Tensor, Tensor]],
    step_ids: Tensor,
    statistics: StepStatistics,
    *,
    token_weights: Tensor | None,
    reduction: str,
    denominator: float | Tensor | None,
) -> Tensor:
    """Weigh and reduce; see the head of this file for the formulas.

    Args:
        terms: Pairs of values per token, of any leading shape, and their step weights (S,); they are added.
        step_ids: Same leading shape, -1 in no step.
        statistics: Of the steps, for their token counts and trajectories.
        token_weights: Same leading shape, or None.
        reduction: One of the five names.
        denominator: Takes the place of the outer divisor, or None.

    Returns:
        Scalar, or the leading shape for "none".
    """
    inner, outer = divisors(reduction, statistics, denominator)
    weighted = functools.reduce(
        torch.add,
        (weigh(values, token_factors(weights / inner, step_ids, token_weights)) for values, weights in terms),
    )
    return weighted if reduction == "none" else weighted.sum() / outer


def weigh(values: Tensor, factors: Tensor) -> Tensor:
    """Multiply values per token, so that a factor of 0 silences an infinite value too.

    Args:
        values: Any shape.
        factors: Same shape.

    Returns:
        The products, exactly 0 where the factor is.
    """
    return torch.where(factors == 0, 0.0, factors * values)


def token_factors(per_step: Tensor, step_ids: Tensor, token_weights: Tensor | None) -> Tensor:
    """Spread factors of steps over their tokens, times the token weights; exactly 0 in no step.

    Args:
        per_step: (S,) floating.
        step_ids: Any shape, -1 in no step.
        token_weights: Same shape as `step_ids`, or None for 1.

    Returns:
        The shape of `step_ids`, dtype of `per_step`.
    """
    # One more entry, 0, which the id -1 of a token in no step addresses from the end.
    factor = torch.nn.functional.pad(per_step, (0, 1))[step_ids]
    if token_weights is None:
        return factor
    return torch.where(step_ids >= 0, factor * token_weights.detach().to(factor.dtype), 0.0)


def divisors(
    reduction: str, statistics: StepStatistics, denominator: float | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Get what a reduction divides by.

    Args:
        reduction: One of the five names.
        statistics: Of the steps.
        denominator: Takes the place of the divisor of everything, or None.

    Returns:
        (S,) divisor of each step's tokens and the scalar divisor of everything, in the statistics' dtype; the
        counted ones are at least 1.
    """
    tokens = statistics.tokens
    dtype = statistics.divergence.dtype
    one = torch.ones((), dtype=dtype, device=tokens.device)
    inner, outer = one.expand(tokens.shape), one
    if reduction == "token_mean":
        outer = tokens.sum()
    elif reduction == "step_mean":
        inner, outer = tokens.clamp(min=1).to(dtype), (tokens > 0).sum()
    elif reduction == "sequence_mean":
        group = dense_ids(statistics.trajectory)
        totals = torch.zeros_like(tokens).scatter_add(0, group, tokens)
        inner, outer = totals[group].clamp(min=1).to(dtype), (totals > 0).sum()
    if denominator is not None:
        return inner, torch.as_tensor(denominator, dtype=dtype, device=tokens.device)
    return inner, outer.clamp(min=1).to(dtype)
