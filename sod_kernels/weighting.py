"""Step weights: statistics of the steps in, one weight per step out, no gradient.

A step without tokens gets weight 0 and takes no part in any anchor, range or count. Steps of one trajectory
are those with equal `step_trajectory`; their order is the order of the step ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sod_kernels._checks import weightings as _checks
from sod_kernels.segments import dense_ids, segment_sums
from sod_kernels.types import StepStatistics

# ATOD's constants: the range under which min-max is undefined and the limits of the mean-preserving ratio.
_FLAT_RANGE = 1e-8
_FLAT_VALUE = 0.5
_RATIO_LIMITS = (0.5, 2.0)
_RATIO_EPSILON = 1e-8


def sod_weights(
    step_divergence: Tensor,
    step_trajectory: Tensor | None = None,
    *,
    delta: float = 0.2,
    epsilon: float = 1e-6,
    step_tokens: Tensor | None = None,
) -> Tensor:
    r"""Weight steps by how far they diverge relative to the first step of their trajectory.

    The paper's product :math:`\prod_{u<k} (d_u + \epsilon) / (d_{u+1} + \epsilon)`, clipped once at its end,
    telescopes, so a weight needs only the first step's divergence and its own:

    .. math:: w_k = \min\{(d_1 + \epsilon) / (d_k + \epsilon),\; 1 + \delta\}, \qquad w_1 = 1.

    The first step is the one with the smallest id among the trajectory's steps that have tokens. An infinite
    :math:`d_k` gives weight 0. Where :math:`d_1` is near 0, every later weight is near 0.

    Args:
        step_divergence: (S,) floating, at least 0: mean divergence of each step in nats.
        step_trajectory: (S,) integer, any values in any order; None means all one trajectory.
        delta: How far above 1 a weight may go; infinity for no upper clip.
        epsilon: Added to both divergences, in nats.
        step_tokens: (S,) number of tokens of each step; None means that every step has some.

    Returns:
        (S,) weights in the dtype of `step_divergence`, detached.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, a device or a number is out of bounds.

    Source:
        SOD, arXiv 2605.07725, equations (6) and (7); the telescoped form is an identity.
    """
    _checks.check_sod_options("sod_weights", delta, epsilon)
    _checks.check_steps("sod_weights", step_divergence, step_trajectory, step_tokens=step_tokens)
    divergence = step_divergence.detach()
    group = _groups(divergence, step_trajectory)
    has_tokens = _has_tokens(divergence, step_tokens)
    index = torch.arange(divergence.shape[0], device=divergence.device)
    nobody = divergence.shape[0]
    # The smallest step with tokens; a trajectory without one points past the end, at the padding below.
    first = torch.full_like(index, nobody).scatter_reduce(
        0, group, torch.where(has_tokens, index, nobody), "amin"
    )[group]
    anchor = torch.nn.functional.pad(divergence, (0, 1))[first]
    weights = ((anchor + epsilon) / (divergence + epsilon)).clamp(max=1.0 + delta)
    # Also where the anchor is infinite too, and the quotient no number.
    weights = torch.where(divergence == torch.inf, 0.0, weights)
    weights = torch.where(index == first, 1.0, weights)
    return torch.where(has_tokens, weights, 0.0)


def tdur_weights(
    step_divergence: Tensor,
    step_uncertainty: Tensor,
    step_tokens: Tensor,
    step_trajectory: Tensor | None = None,
    *,
    min_turns: int = 3,
    min_divergence: float = 0.01,
    mean_preserving: bool = False,
) -> Tensor:
    r"""Weight turns that stand out in their trajectory by divergence or by uncertainty (T-DUR).

    With :math:`\tilde d, \tilde h` the divergence and uncertainty brought to [0, 1] by their smallest and
    largest value in the trajectory (0.5 where these differ by less than 1e-8):

    .. math:: w_k = 1 - (1 - \tilde d_k)(1 - \tilde h_k).

    A trajectory with fewer than `min_turns` turns, or no divergence of at least `min_divergence`, keeps
    weight 1. With `mean_preserving`, :math:`r_k` is :math:`w_k` over its token mean, limited to [0.5, 2], and
    the weight is :math:`r_k` over its own token mean, so that the trajectory's total strength stays what it
    was. An infinite value counts as 1 after scaling, and the others of its trajectory as 0.

    Args:
        step_divergence: (S,) floating: mean divergence of each turn in nats.
        step_uncertainty: (S,) floating, same dtype: mean negative log-likelihood or entropy in nats.
        step_tokens: (S,) number of tokens of each turn.
        step_trajectory: (S,) integer, any values in any order; None means all one trajectory.
        min_turns: Turns with tokens that a trajectory needs for weighting.
        min_divergence: Largest divergence that a trajectory needs for weighting, in nats.
        mean_preserving: Whether to keep the token mean of the weights at 1.

    Returns:
        (S,) weights in the dtype of `step_divergence`, detached.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, a device or a number is out of bounds.

    Source:
        ATOD, arXiv 2606.27814, equations (13) to (16); guards and mean-preserving form as in its code.
    """
    _checks.check_tdur_options("tdur_weights", min_turns, min_divergence, mean_preserving)
    _checks.check_steps(
        "tdur_weights",
        step_divergence,
        step_trajectory,
        step_uncertainty=step_uncertainty,
        step_tokens=step_tokens,
    )
    divergence, uncertainty = step_divergence.detach(), step_uncertainty.detach()
    group = _groups(divergence, step_trajectory)
    has_tokens = _has_tokens(divergence, step_tokens)
    far = _min_max(divergence, group, has_tokens)
    unsure = _min_max(uncertainty, group, has_tokens)
    weights = 1.0 - (1.0 - far) * (1.0 - unsure)
    if mean_preserving:
        weights = _preserve_mean(weights, step_tokens.detach(), group, has_tokens)
    turns = torch.zeros_like(group).scatter_add(0, group, has_tokens.long())[group]
    _, largest = _extremes(divergence, group, has_tokens)
    is_weighted = (turns >= min_turns) & ~(largest < min_divergence)
    return torch.where(has_tokens, torch.where(is_weighted, weights, 1.0), 0.0)


def _groups(values: Tensor, step_trajectory: Tensor | None) -> Tensor:
    """Number the trajectories 0, 1, ... so that they can index an (S,) table."""
    if step_trajectory is None:
        return torch.zeros(values.shape[0], dtype=torch.int64, device=values.device)
    return dense_ids(step_trajectory)


def _has_tokens(values: Tensor, step_tokens: Tensor | None) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool) if step_tokens is None else step_tokens > 0


def _extremes(values: Tensor, group: Tensor, has_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value over the steps with tokens of each step's trajectory."""
    low = torch.full_like(values, torch.inf).scatter_reduce(
        0, group, torch.where(has_tokens, values, torch.inf), "amin"
    )
    high = torch.full_like(values, -torch.inf).scatter_reduce(
        0, group, torch.where(has_tokens, values, -torch.inf), "amax"
    )
    return low[group], high[group]


def _min_max(values: Tensor, group: Tensor, has_tokens: Tensor) -> Tensor:
    low, high = _extremes(values, group, has_tokens)
    span = high - low
    scaled = torch.where(span < _FLAT_RANGE, _FLAT_VALUE, (values - low) / span)
    return torch.where(values == torch.inf, 1.0, scaled)


def _preserve_mean(weights: Tensor, tokens: Tensor, group: Tensor, has_tokens: Tensor) -> Tensor:
    count = torch.where(has_tokens, tokens.to(torch.float64), 0.0)
    num_steps = weights.shape[0]
    total = segment_sums(count, group, num_steps)[group]

    def token_mean(values: Tensor) -> Tensor:
        sums = segment_sums(torch.where(has_tokens, count * values, 0.0), group, num_steps)[group]
        return sums / total.clamp(min=1.0)

    exact = weights.to(torch.float64)
    ratio = (exact / (token_mean(exact) + _RATIO_EPSILON)).clamp(*_RATIO_LIMITS)
    return (ratio / (token_mean(ratio) + _RATIO_EPSILON)).to(weights.dtype)


@dataclass(frozen=True, kw_only=True)
class SodWeighting:
    """`sod_weights` as a `weighting=` for `step_kl`.

    Attributes:
        delta: How far above 1 a weight may go; infinity for no upper clip.
        epsilon: Added to both divergences, in nats.
        is_causal: A weight reads its step and the first one of the trajectory, so it is known when the step
            is complete: `linear_step_kl` applies it in a single sweep.
    """

    is_causal: ClassVar[bool] = True
    delta: float = 0.2
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _checks.check_sod_options("SodWeighting", self.delta, self.epsilon)

    def __call__(self, statistics: StepStatistics) -> Tensor:
        """Weigh the steps.

        Args:
            statistics: Of the steps.

        Returns:
            (S,) weights.
        """
        return sod_weights(
            statistics.divergence,
            statistics.trajectory,
            delta=self.delta,
            epsilon=self.epsilon,
            step_tokens=statistics.tokens,
        )


@dataclass(frozen=True, kw_only=True)
class TurnWeighting:
    """`tdur_weights` as a `weighting=` for `step_kl`.

    Attributes:
        min_turns: Turns with tokens that a trajectory needs for weighting.
        min_divergence: Largest divergence that a trajectory needs for weighting, in nats.
        mean_preserving: Whether to keep the token mean of the weights at 1.
        is_causal: A weight reads every step of its trajectory.
    """

    is_causal: ClassVar[bool] = False
    min_turns: int = 3
    min_divergence: float = 0.01
    mean_preserving: bool = False

    def __post_init__(self) -> None:
        _checks.check_tdur_options("TurnWeighting", self.min_turns, self.min_divergence, self.mean_preserving)

    def __call__(self, statistics: StepStatistics) -> Tensor:
        """Weigh the turns.

        Args:
            statistics: Of the turns.

        Returns:
            (S,) weights.
        """
        return tdur_weights(
            statistics.divergence,
            statistics.uncertainty,
            statistics.tokens,
            statistics.trajectory,
            min_turns=self.min_turns,
            min_divergence=self.min_divergence,
            mean_preserving=self.mean_preserving,
        )
