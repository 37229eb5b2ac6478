"""From a divergence per token to a loss: step weights, token weights, reduction.

With ell_n = step weight * token weight * token_kl of token n (exactly 0 in no step, and where a weight is 0):

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

from collections.abc import Callable
from typing import cast

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


def reduce_loss(
    token_kl: Tensor,
    step_ids: Tensor,
    statistics: StepStatistics,
    weights: Tensor,
    *,
    token_weights: Tensor | None,
    reduction: str,
    denominator: float | Tensor | None,
) -> Tensor:
    """Weigh and reduce; see the head of this file for the formulas.

    Args:
        token_kl: Any leading shape.
        step_ids: Same shape, -1 in no step.
        statistics: Of the steps, for their token counts and trajectories.
        weights: (S,) step weights.
        token_weights: Same shape as `token_kl`, or None.
        reduction: One of the five names.
        denominator: Takes the place of the outer divisor, or None.

    Returns:
        Scalar, or the shape of `token_kl` for "none".
    """
    inner, outer = _divisors(reduction, statistics, token_kl.dtype)
    # One more entry, 0, which the id -1 of a token in no step addresses from the end.
    per_step = torch.nn.functional.pad(weights / inner, (0, 1))
    factor = per_step[step_ids]
    if token_weights is not None:
        factor = torch.where(step_ids >= 0, factor * token_weights.detach(), 0.0)
    # Not a product alone: weight 0 must silence an infinite divergence too.
    weighted = torch.where(factor == 0, 0.0, factor * token_kl)
    if reduction == "none":
        return weighted
    return weighted.sum() / (outer if denominator is None else cast(Tensor, denominator))


def _divisors(reduction: str, statistics: StepStatistics, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(S,) divisor of each step's tokens and the scalar divisor of everything; at least 1 each."""
    tokens = statistics.tokens
    one = torch.ones((), dtype=dtype, device=tokens.device)
    inner, outer = one.expand(tokens.shape), one
    if reduction == "token_mean":
        outer = tokens.sum()
    elif reduction == "step_mean":
        inner, outer = tokens, (tokens > 0).sum()
    elif reduction == "sequence_mean":
        group = dense_ids(statistics.trajectory)
        totals = torch.zeros_like(tokens).scatter_add(0, group, tokens)
        inner, outer = totals[group], (totals > 0).sum()
    return inner.clamp(min=1).to(dtype), outer.clamp(min=1).to(dtype)
