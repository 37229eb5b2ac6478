"""What bounds a rollout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sod.engines.base import SamplingParams


@dataclass(frozen=True, kw_only=True)
class RolloutLimits:
    """What bounds one trajectory.

    Attributes:
        max_turns: Assistant turns.
        max_turn_tokens: Sampled tokens of one turn, stop token included; where the sampling parameters
            say less, that holds.
        max_trajectory_tokens: All tokens of one sequence: prompt, turns and observations.
    """

    max_turns: int
    max_turn_tokens: int
    max_trajectory_tokens: int

    def __post_init__(self) -> None:
        # A trajectory has a token of prompt and one to sample.
        for name, least in (("max_turns", 1), ("max_turn_tokens", 1), ("max_trajectory_tokens", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"RolloutLimits: {name} must be {least} or more, got {getattr(self, name)}.")

    def within(self, params: SamplingParams) -> RolloutLimits:
        """Tighten the limits by those of the sampling parameters: of two bounds on one thing the lower holds.

        Args:
            params: How turns are sampled.

        Returns:
            The limits for engine and collector alike.
        """
        total = params.max_total_tokens or self.max_trajectory_tokens
        return replace(
            self,
            max_turn_tokens=min(params.max_turn_tokens, self.max_turn_tokens),
            max_trajectory_tokens=min(total, self.max_trajectory_tokens),
        )
