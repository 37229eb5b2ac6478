"""TIP: on-policy distillation on the tokens where the student is unsure or far from the teacher."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.token_weights import SoftOrSelection
from sod.config_algorithms import TIPSection
from sod.schedules import constant


def tip(section: TIPSection) -> StepObjective:
    """Make TIP: the score 1 - (1 - h~_t)(1 - d~_t) weighs a token, or picks the share of tokens to keep.

    Source: arXiv 2604.14084.
    """
    return StepObjective(
        name="tip",
        divergence=divergence_of(section),
        token_weight=SoftOrSelection(keep=section.keep),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )
