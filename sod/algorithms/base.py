"""What an algorithm is: a loss on the rows of a microbatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from sod.packing import Batch
from sod.scoring import ModelScores, TeacherScores


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """What one microbatch gives.

    Attributes:
        loss: Scalar to call backward on: the sum over this microbatch divided by the denominator of the
            whole minibatch, so that microbatches add up.
        token_sums: Sums over trained tokens, detached scalars; the trainer divides them by the tokens of
            the minibatch and logs them as `<key>_mean`.
        step_divergence: (S,) mean divergence of each step, nats, detached.
        step_weights: (S,) weight that was applied to each step, detached.
        step_tokens: (S,) int64 tokens of each step.
        coefficients: Coefficients that a schedule gave, by their metric's name.
    """

    loss: Tensor
    token_sums: Mapping[str, Tensor]
    step_divergence: Tensor
    step_weights: Tensor
    step_tokens: Tensor
    coefficients: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """What a loss must know besides its microbatch.

    Attributes:
        denominator: Trained tokens over the whole minibatch.
        round_number: Number of the round, 1 for the first.
        anchor: Running quantile of the step divergences so far, nats; None before the first update.
        reference: N rows of the policy that the run started from, for an algorithm that needs it.
    """

    denominator: int
    round_number: int
    anchor: float | None = None
    reference: ModelScores | None = None


class Algorithm(Protocol):
    """One paper's objective; a preset of parts without state."""

    @property
    def name(self) -> str:
        """Its name in a TOML file."""

    @property
    def needs_teacher(self) -> bool:
        """Whether `loss` reads a teacher."""

    @property
    def needs_reference(self) -> bool:
        """Whether `loss` reads `LossContext.reference`."""

    def loss(
        self, batch: Batch, student: ModelScores, teacher: TeacherScores | None, context: LossContext
    ) -> LossOutput:
        """Compute the loss of a microbatch.

        Args:
            batch: The microbatch, N rows.
            student: Logits or hidden states of the rows, differentiable.
            teacher: Logits or hidden states of the rows, or what was listed of them; None where
                `needs_teacher` is False.
            context: Denominator and round.

        Returns:
            Loss and statistics.
        """
