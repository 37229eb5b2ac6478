"""On-policy distillation: the divergence from the teacher on the student's own tokens, all steps alike."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.registry import step_weight
from sod.config_algorithms import OPDSection
from sod.schedules import constant


def opd(section: OPDSection) -> StepObjective:
    """Make the uniform objective, w_k = 1, or one with a step weight of the user's own.

    Args:
        section: Its settings; `reward_coefficient = 1` gives the baseline "OPD" of the SOD paper, which adds
            the GRPO term. `weight` takes a step weight of the user's own in place of 1.

    Returns:
        The algorithm.

    Raises:
        ConfigError: If that step weight cannot be had.

    Source: arXiv 2605.07725, equation (4).
    """
    return StepObjective(
        name="opd",
        divergence=divergence_of(section),
        weight=None if section.weight is None else step_weight(section.weight),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
    )
