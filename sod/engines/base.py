"""What every rollout engine offers: token ids in, token ids and log-probabilities out.

Text never crosses this border. An engine samples turns; whatever happens between two turns (parsing,
tools, limits) is the business of the `Respond` callback that it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from sod.types import StopReason


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an engine samples.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Smallest probability mass that is sampled from, in (0, 1]. Log-probabilities are always
            those before this cut.
        max_turn_tokens: Tokens that one turn may have, stop token included.
        stop_ids: Token ids that end a turn; at least one.
        max_total_tokens: Tokens that a row may have in all, prompt and observations included. None
            leaves it to the positions that the model has.
    """

    max_turn_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    max_total_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"SamplingParams: temperature must be 0 or more, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"SamplingParams: top_p must be in (0, 1], got {self.top_p}.")
        if self.max_turn_tokens < 1:
            raise ValueError(
                f"SamplingParams: max_turn_tokens must be 1 or more, got {self.max_turn_tokens}."
            )
        if not self.stop_ids:
            raise ValueError(
                "SamplingParams: stop_ids is empty, so no turn could ever end; pass ChatRenderer.stop_ids."
            )
        if self.max_total_tokens is not None and self.max_total_tokens < 2:
            raise ValueError(
                f"SamplingParams: max_total_tokens must be 2 or more, got {self.max_total_tokens}."
            )

    @property
    def is_truncated(self) -> bool:
        """Whether top_p cuts the vocabulary; greedy choice has nothing to cut."""
        return self.top_p < 1.0 and self.temperature > 0.0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One turn as an engine sampled it.

    Attributes:
        sampled_ids: Token ids, stop token included.
        log_probs: Their log-probabilities in nats, at the sampling temperature and before top_p; empty
            where the engine did not sample (scripts). Where `is_truncated`, an engine that knows no others
            gives those after the cut, which are larger by the log of the mass kept, at most -log(top_p).
        stop_reason: Why sampling stopped.
        is_truncated: Whether top_p cut the vocabulary that the turn was sampled from.
    """

    sampled_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    stop_reason: StopReason
    is_truncated: bool = False


Respond = Callable[[Sequence[tuple[int, Generation]]], Sequence[tuple[int, ...] | None]]
"""Called with every (row, generation) that ended a turn at one decode step, in row order. Returns for each
the ids to append (context of the next turn, maybe empty) or None when the trajectory is over."""

WeightSource = nn.Module | Mapping[str, Tensor]
"""Where `RolloutEngine.update_weights` takes weights from: a module or its state dict."""


class RolloutEngine(Protocol):
    """Samples trajectories turn by turn.

    Attributes:
        policy_version: Number of optimiser updates behind the weights now in use.
    """

    policy_version: int

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Sample all rows to their end; results travel through `respond`.

        Args:
            prompts: One token id sequence per row, generation header included.
            respond: Answers every ended turn.
            params: How to sample.
            seed: Makes the call repeatable.
        """

    def update_weights(self, model_or_state: WeightSource, policy_version: int) -> None:
        """Take over new weights.

        Args:
            model_or_state: The trained module or its state dict.
            policy_version: Number of optimiser updates behind them.
        """

    def score(self, ids: Sequence[int]) -> tuple[float, ...] | None:
        """Score a text with the weights now in use, so that their arrival can be proven.

        Args:
            ids: Token ids, at least two.

        Returns:
            Log-probabilities in nats at temperature 1 of every id but the first, given those before it;
            None for an engine without weights.
        """

    def close(self) -> None:
        """Release what the engine holds; it is not used afterwards."""


class WeightlessEngine:
    """What an engine without weights of its own does with those of the student: it notes their version.

    Attributes:
        policy_version: As last set.
    """

    policy_version: int

    def __init__(self) -> None:
        """Begin at version 0."""
        self.policy_version = 0

    def update_weights(self, model_or_state: WeightSource, policy_version: int) -> None:
        """Note the version.

        Args:
            model_or_state: Not read.
            policy_version: Number of optimiser updates.
        """
        self.policy_version = policy_version

    def score(self, ids: Sequence[int]) -> tuple[float, ...] | None:
        """Give None: there is nothing to score with."""
        return None

    def close(self) -> None:
        """Do nothing; nothing is held."""
