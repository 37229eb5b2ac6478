"""Step weights that become known during the walk, each as soon as its step is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from sod_kernels._reduction import counted_statistics, divisors, step_weights
from sod_kernels.functional.output import step_statistics
from sod_kernels.linear.inputs import Objective
from sod_kernels.linear.plan import Chunk
from sod_kernels.linear.rows import to_device
from sod_kernels.linear.sweep import ChunkSweep, TokenLedger
from sod_kernels.types import StepStatistics
from sod_kernels.weighting import SodWeighting

Weighting = Callable[[StepStatistics], Tensor]

# Ops take numbers and tensors; a weighting of the caller's own travels as a key, for the length of a call.
_REGISTERED: dict[int, Weighting] = {}


def is_causal(weighting: object) -> bool:
    """Say whether a weighting can be applied during the walk.

    Args:
        weighting: As given by the caller.

    Returns:
        True for None, a tensor, and a function whose attribute `is_causal` is True.
    """
    if weighting is None or isinstance(weighting, Tensor):
        return True
    return getattr(weighting, "is_causal", False) is True


@contextmanager
def registered(weighting: Weighting) -> Iterator[int]:
    """Make a weighting known to the op for the length of a call.

    Args:
        weighting: A causal one of the caller's own.

    Yields:
        Its key, not 0.
    """
    key = max(_REGISTERED, default=0) + 1
    _REGISTERED[key] = weighting
    try:
        yield key
    finally:
        del _REGISTERED[key]


def needs_complete_steps(objective: Objective) -> bool:
    """Say whether weights become known only as steps are completed.

    Args:
        objective: Of a single sweep.

    Returns:
        False if every weight is known beforehand.
    """
    return objective.delta is not None or objective.weighting != 0


class RunningWeights:
    """Weights and divisors of the steps, in the order of the walk.

    Attributes:
        weights: (R,) weights of steps with tokens, 0 until a step is complete.
        shares: (R,) one over both divisors of the reduction: what a token of the step counts for.
    """

    def __init__(self, function: str, objective: Objective, sweep: ChunkSweep, ledger: TokenLedger) -> None:
        """Apply what is known beforehand.

        Args:
            function: Name for messages.
            objective: Weighting, trajectories and reduction.
            sweep: The walk.
            ledger: Its results.
        """
        rows = sweep.rows
        self._function, self._objective, self._ledger, self._rows = function, objective, ledger, rows
        self._has_sampled = sweep.has_sampled
        self._trajectory = to_device(objective.step_trajectory, rows.ranks.device)
        counted = counted_statistics(rows.tokens, self._trajectory, sweep.dtype)
        inner, outer = divisors(objective.reduction, counted, objective.denominator)
        self.shares = (1.0 / (inner * outer))[rows.steps]
        self.weights, self._latest = counted.divergence[rows.steps], counted.divergence
        self.num_known = 0
        if not needs_complete_steps(objective):
            self.num_known = rows.steps.shape[0]
            self._latest = step_weights(function, objective.step_weights, counted)
            self.weights = self._latest[rows.steps]

    def statistics(self, num_ranks: int) -> StepStatistics:
        """Average the sums of the first steps; the others have none yet.

        Args:
            num_ranks: Steps to take.

        Returns:
            (S,) each.
        """
        stats = self._ledger.stats._replace(step_sums=self._ledger.step_sums(num_ranks))
        return step_statistics(
            stats, self._trajectory, self._objective.step_divergence, has_sampled=self._has_sampled
        )

    def update(self, chunk: Chunk) -> None:
        """Weigh the steps that a chunk completes.

        Args:
            chunk: Whose results the ledger has.
        """
        known, complete = self.num_known, chunk.complete_ranks
        if complete > known:
            self._latest = step_weights(self._function, self._resolve(), self.statistics(complete))
            self.weights[known:complete] = self._latest[self._rows.steps[known:complete]]
            self.num_known = complete

    def per_step(self) -> Tensor:
        """Spread the weights over all steps.

        Returns:
            (S,): of steps without tokens what the weighting says last.
        """
        total = self._latest.clone()
        total[self._rows.steps] = self.weights
        return total

    def _resolve(self) -> Weighting:
        objective = self._objective
        if objective.delta is not None and objective.epsilon is not None:
            return SodWeighting(delta=objective.delta, epsilon=objective.epsilon)
        return _REGISTERED[objective.weighting]
