"""What the settings of algorithms have in common: the terms that a loss can have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

from sod.config_schema import Above, AtLeast, AtMost, Section
from sod.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BaseAlgorithmSection(Section):
    """What an algorithm reads, so that a run without it is refused before any work is done."""

    section: ClassVar[str] = "algorithm"
    is_on_policy: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    needs_equal_ids: ClassVar[bool] = True
    invalid_penalty: ClassVar[float] = 0.0

    @property
    def reads_expert(self) -> bool:
        """Whether it trains on expert conversations, in some rounds or all."""
        return not self.is_on_policy

    @property
    def has_reward_term(self) -> bool:
        """Whether the reward has a coefficient above 0 at any time."""
        return False

    @property
    def anchor_quantile(self) -> float:
        """Which quantile of the step divergences is followed over the updates, for step weights to read."""
        return 0.5

    @property
    def has_ratio(self) -> bool:
        """Whether there is a policy-gradient term, which compares probabilities at sampling time and now."""
        return False


@dataclass(frozen=True, kw_only=True)
class SurrogateSection(BaseAlgorithmSection):
    """The clipped policy-gradient term."""

    clip_low: Annotated[float, Above(0), AtMost(1)] = 0.2
    """The probability ratio counts down to 1 - clip_low."""
    clip_high: Annotated[float, Above(0)] = 0.28
    """The probability ratio counts up to 1 + clip_high."""
    dual_clip: Annotated[float, AtLeast(0)] = 3.0
    """Cap of the loss in units of the advantage where it is negative, above 1; 0 for none."""

    def __post_init__(self) -> None:
        """Check types, ranges and the cap."""
        super().__post_init__()
        if 0 < self.dual_clip <= 1:
            raise ConfigError(f"[algorithm] dual_clip = {self.dual_clip!r}: wanted a value above 1, or 0")


@dataclass(frozen=True, kw_only=True)
class DistillationSection(SurrogateSection):
    """What every algorithm with a teacher can set."""

    needs_teacher: ClassVar[bool] = True
    form: Literal["vocab", "sampled"] = "vocab"
    """"vocab" differentiates the divergence over the vocabulary, "sampled" is the advantage form."""
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """Divergence between student and teacher at each token, in nats; "sampled" has "reverse_kl" only."""
    beta: Annotated[float, Above(0)] = 0.5
    """Weight of the teacher in the mixture of "jsd", between 0 and 1."""
    temperature: Annotated[float, Above(0)] | None = None
    """Divides both logits; None for 1, or with a policy-gradient term for that of the rollouts."""
    min_log_prob: Annotated[float, AtMost(0)] | None = None
    """Floor in nats under the log-probabilities that the divergence divides by; None for no floor."""

    @property
    def has_ratio(self) -> bool:
        """Whether there is a policy-gradient term: the sampled form or a reward."""
        return self.form == "sampled" or self.has_reward_term

    def __post_init__(self) -> None:
        """Check types, ranges and that every setting is read at all."""
        super().__post_init__()
        if self.beta >= 1:
            raise ConfigError(f"[algorithm] beta = {self.beta!r}: wanted a value below 1")
        if self.form == "sampled" and self.divergence != "reverse_kl":
            raise ConfigError(
                f'[algorithm] divergence = "{self.divergence}": belongs to form = "vocab"; '
                'the sampled form has "reverse_kl" only'
            )
        if self.beta != 0.5 and self.divergence != "jsd":
            raise ConfigError(
                f'[algorithm] beta = {self.beta!r}: belongs to divergence = "jsd", '
                f"but divergence = {self.divergence!r}; remove one of the two"
            )
        if self.min_log_prob is not None and self.divergence == "jsd":
            raise ConfigError(
                f"[algorithm] min_log_prob = {self.min_log_prob!r}: belongs to divergence "
                '"reverse_kl" or "forward_kl"; "jsd" is finite without a floor; remove one of the two'
            )
        for item in fields(SurrogateSection):
            if getattr(self, item.name) != item.default and not self.has_ratio:
                raise ConfigError(
                    f"[algorithm] {item.name} = {getattr(self, item.name)!r}: belongs to the policy-gradient "
                    'term, which form = "vocab" without a reward does not have; remove one of the two'
                )


@dataclass(frozen=True, kw_only=True)
class RewardedSection(DistillationSection):
    """Distillation beside a reward of constant weight."""

    reward_coefficient: Annotated[float, AtLeast(0)] = 0.0
    """Coefficient of the reward (GRPO) term; 0 leaves it out."""

    @property
    def has_reward_term(self) -> bool:
        """Whether the reward has a coefficient above 0."""
        return self.reward_coefficient > 0
