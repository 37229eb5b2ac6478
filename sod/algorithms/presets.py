"""Parts that the presets take from their settings in the same way."""

from __future__ import annotations

from sod.algorithms.policy import ClippedSurrogate
from sod.algorithms.token_divergence import Divergence
from sod.config_losses import DistillationSection, SurrogateSection


def divergence_of(section: DistillationSection, *, per_step: str = "abs_log_ratio") -> Divergence:
    """Read the divergence of a section."""
    return Divergence(
        form=section.form,
        kind=section.divergence,
        beta=section.beta,
        temperature=section.temperature or 1.0,
        min_log_prob=section.min_log_prob,
        per_step=per_step,
    )


def surrogate_of(section: SurrogateSection) -> ClippedSurrogate:
    """Read the bounds of the policy-gradient term of a section."""
    return ClippedSurrogate(
        clip_low=section.clip_low, clip_high=section.clip_high, dual_clip=section.dual_clip or None
    )
