"""STM, step-wise target mixing: where the teacher is far, a step is held to where it started."""

from __future__ import annotations

from sod.algorithms.objective import StepObjective
from sod.algorithms.presets import divergence_of, surrogate_of
from sod.algorithms.step_weights import FromAnchor
from sod.config_algorithms import STMSection
from sod.schedules import constant


def stm(section: STMSection) -> StepObjective:
    """Make STM: mean of w_k KL(student, teacher) + max(0, 1 - w_k) KL(student, reference).

    For w_k <= 1 that is, up to a constant, the divergence from the geometric mixture of teacher and reference
    with weights w_k and 1 - w_k. A bare multiplier w_k only slows what a misled teacher does to such a step;
    the second target restores it.

    Args:
        section: Its settings.

    Returns:
        The algorithm.

    Source: ours; derivation in docs/math.md, "Two targets".
    """
    return StepObjective(
        name="stm",
        divergence=divergence_of(section, per_step=section.step_divergence),
        weight=FromAnchor(
            anchor=section.anchor,
            quantile=section.quantile,
            constant=section.constant,
            entropy_factor=section.entropy_factor,
            delta=section.delta,
            epsilon=section.epsilon,
            sharpness=section.sharpness,
            min_weight=section.min_weight,
        ),
        reward=constant(section.reward_coefficient),
        surrogate=surrogate_of(section),
        needs_reference=True,
    )
