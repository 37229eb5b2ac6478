"""Step weights: pure functions of what is known of the steps, without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sod_kernels import SodWeighting
from sod_kernels.types import StepStatistics


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step weight may read; (S,) each, detached.

    Attributes:
        statistics: Divergence and uncertainty in nats, tokens and trajectory of each step.
        turn: Turn of each step within its trajectory, from 0.
        errors_before: Error observations of the trajectory before the step.
        round_number: Number of the round, 1 for the first.
        anchor: Running quantile of the step divergences of earlier updates (the median unless the algorithm
            says another), nats; None before the first.
        advantages: Advantage of the step; None where the algorithm reads no rewards.
    """

    statistics: StepStatistics
    turn: Tensor
    errors_before: Tensor
    round_number: int
    anchor: float | None = None
    advantages: Tensor | None = None


StepWeight = Callable[[StepContext], Tensor]
"""(S,) weights from a `StepContext`."""


def is_causal(weight: StepWeight, anchor: float | None) -> bool:
    """Say whether a step's weight reads no later step, so that a single sweep can apply it.

    Args:
        weight: Any; of another package's it is known only if it has an attribute `is_causal`.
        anchor: Running quantile of the step divergences of earlier updates, None before the first.

    Returns:
        False where it is not known.
    """
    if isinstance(weight, FromAnchor):
        if weight.anchor == "running_quantile":
            return anchor is not None
        return weight.anchor != "batch_quantile"
    return getattr(weight, "is_causal", False) is True


@dataclass(frozen=True, kw_only=True)
class FromStatistics:
    """A weighting of `sod_kernels` (`SodWeighting`, `TurnWeighting`) as a step weight.

    Attributes:
        weighting: Function of the step statistics alone.
    """

    weighting: Callable[[StepStatistics], Tensor]

    def __call__(self, context: StepContext) -> Tensor:
        """Weigh the steps."""
        return self.weighting(context.statistics)


@dataclass(frozen=True, kw_only=True)
class DecayAfterError:
    """w_k = decay^j for the j-th step after a trajectory's first error, 1 before it; 0 masks those steps.

    Attributes:
        decay: From 0 to 1.

    Source: the ablations of arXiv 2605.07725: 0.9 for "decay", 0 for "mask".
    """

    decay: float

    is_causal: ClassVar[bool] = True

    def __call__(self, context: StepContext) -> Tensor:
        """Weigh the steps."""
        has_erred = context.errors_before > 0
        dtype = context.statistics.divergence.dtype
        # The first step that has an error behind it is the first after the error.
        far = torch.iinfo(torch.int64).max
        _, group = torch.unique(context.statistics.trajectory, return_inverse=True)
        first = torch.full_like(group, far).scatter_reduce(
            0, group, torch.where(has_erred, context.turn, far), "amin"
        )
        distance = torch.where(has_erred, context.turn - first[group] + 1, 0)
        return torch.where(has_erred, self.decay ** distance.to(dtype), torch.ones((), dtype=dtype))


@dataclass(frozen=True, kw_only=True)
class FromAnchor:
    """w_k = clip(((anchor + epsilon) / (d_k + epsilon))^sharpness, min_weight, 1 + delta).

    SOD's anchor is the first step of the step's own trajectory, which an easy first step makes small for all
    others. The student's own entropy tells a student that does not know from one that is sure of something
    else: only the first follows a teacher that is far.

    Attributes:
        anchor: "entropy", a multiple of the student's own in the step; "constant"; "running_quantile" of the
            step divergences of earlier updates (of this microbatch before the first); "batch_quantile" of
            this microbatch; or "first_step" as in SOD.
        entropy_factor: For "entropy".
        quantile: For the two quantiles; the running one is followed by the trainer.
        constant: For "constant", nats.
        delta: A weight is at most 1 + delta.
        epsilon: Added to both sides of the ratio, nats: divergences well below it count as equal.
        sharpness: Power of the ratio: how fast a weight falls once a step is farther than the anchor.
        min_weight: A weight is at least this.

    Source: ours; docs/math.md, "Two targets".
    """

    anchor: Literal["entropy", "constant", "running_quantile", "batch_quantile", "first_step"] = "entropy"
    entropy_factor: float = 1.5
    quantile: float = 0.5
    constant: float = 0.1
    delta: float = 0.2
    epsilon: float = 0.02
    sharpness: float = 3.0
    min_weight: float = 0.0

    def __call__(self, context: StepContext) -> Tensor:
        """Weigh the steps; 0 for a step without tokens."""
        weights = self._ratio(context).pow(self.sharpness).clamp(self.min_weight, 1.0 + self.delta)
        return torch.where(context.statistics.tokens > 0, weights, 0.0)

    def _ratio(self, context: StepContext) -> Tensor:
        if self.anchor == "first_step":
            return SodWeighting(delta=torch.inf, epsilon=self.epsilon)(context.statistics)
        return (self._anchor(context) + self.epsilon) / (context.statistics.divergence + self.epsilon)

    def _anchor(self, context: StepContext) -> Tensor:
        divergence = context.statistics.divergence
        if self.anchor == "entropy":
            return self.entropy_factor * context.statistics.entropy
        if self.anchor == "constant":
            return divergence.new_tensor(self.constant)
        if self.anchor == "running_quantile" and context.anchor is not None:
            return divergence.new_tensor(context.anchor)
        present = divergence[context.statistics.tokens > 0]
        return present.quantile(self.quantile) if present.numel() else divergence.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class FirstTurns:
    """w_k = 1 for turn k < 1 + floor(s / rounds_per_turn) in round s, else 0: turns come in from the front.

    Attributes:
        rounds_per_turn: Rounds after which one more turn is trained.

    Source: TCOD, arXiv 2604.24005, front to back.
    """

    rounds_per_turn: int

    is_causal: ClassVar[bool] = True

    def __call__(self, context: StepContext) -> Tensor:
        """Weigh the steps."""
        reach = 1 + context.round_number // self.rounds_per_turn
        return (context.turn < reach).to(context.statistics.divergence.dtype)


@dataclass(frozen=True, kw_only=True)
class AdvantageGate:
    """w = low + (high - low) sigmoid(-steepness * A_i): a trajectory that failed is distilled more.

    Attributes:
        low: Weight of a trajectory far better than its group.
        high: Weight of one far worse.
        steepness: How fast it turns, per unit of advantage.

    Source: the gated distillation of the code that arXiv 2605.07725 released.
    """

    low: float
    high: float
    steepness: float

    is_causal: ClassVar[bool] = True

    def __call__(self, context: StepContext) -> Tensor:
        """Weigh the steps.

        Raises:
            ValueError: Without advantages.
        """
        if context.advantages is None:
            raise ValueError("AdvantageGate: context.advantages is None; wanted (S,), pack with advantages.")
        gate = torch.sigmoid(-self.steepness * context.advantages)
        return (self.low + (self.high - self.low) * gate).to(context.statistics.divergence.dtype)
