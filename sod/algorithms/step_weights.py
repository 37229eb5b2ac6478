"""Step weights: pure functions of what is known of the steps, without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels.types import StepStatistics


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step weight may read; (S,) each, detached.

    Attributes:
        statistics: Divergence and uncertainty in nats, tokens and trajectory of each step.
        turn: Turn of each step within its trajectory, from 0.
        errors_before: Error observations of the trajectory before the step.
        round_number: Number of the round, 1 for the first.
    """

    statistics: StepStatistics
    turn: Tensor
    errors_before: Tensor
    round_number: int


StepWeight = Callable[[StepContext], Tensor]
"""(S,) weights from a `StepContext`."""


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
